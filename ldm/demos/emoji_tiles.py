"""Parts of emoji to learn enlarging from, and emoji to measure it on.

A model that enlarges four times sees 64 pixels of a side at once, and learns from parts of that size: emoji of 256
pixels are scaled to several sizes and cut at drawn places. The emoji that are held out are in none of them.

DEST/images/red-apple-0.png   RGB, size_px square
DEST/metadata.jsonl           one row per part: file_name, text, and flip
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ldm.demos.shapes_quality import Case
from ldm.errors import UserError
from ldm.io.folders import new_folder
from ldm.io.images import open_image, resize_and_crop
from ldm.io.json_files import parse_json
from ldm.io.opening import read_text
from ldm.noise import choice, uniform

SIDES_PX = (96, 128, 192, 256)
"""What an emoji is scaled to before a part is cut out."""

HELD_OUT_SHARE = 0.05
LEAST_INK = 0.1
"""A part must differ from white in this share of its pixels."""
MAX_ATTEMPTS = 20


@dataclass(frozen=True)
class Emoji:
    """One emoji of a dataset of `ldm.demos.emoji`."""

    path: Path
    text: str
    may_flip: bool

    @property
    def is_held_out(self) -> bool:
        """Whether no part of it is trained on."""
        return uniform("emoji tiles held out", self.path.stem) < HELD_OUT_SHARE


def read_emoji(folder: Path) -> list[Emoji]:
    """The emoji of a dataset.

    Raises:
        UserError: its list is missing or damaged.
    """
    path = folder / "metadata.jsonl"
    try:
        rows = [parse_json(line) for line in read_text(path).splitlines()]
        return [Emoji(folder / row["file_name"], row["text"], bool(row["flip"])) for row in rows]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} cannot be read ({error})", "make the data again") from error


def tile(image: Image.Image, size_px: int, *key: int | str) -> Image.Image | None:
    """A part of an image, `size_px` square; None if what was drawn is nearly white."""
    side = SIDES_PX[choice(len(SIDES_PX), *key, "side")]
    scaled = resize_and_crop(image, side, side)
    left, top = (choice(side - size_px + 1, *key, place) for place in ("left", "top"))
    part = scaled.crop((left, top, left + size_px, top + size_px))
    ink = (np.asarray(part).min(axis=2) < 240).mean()
    return part if ink > LEAST_INK else None


def write_emoji_tiles(
    dest: Path,
    emoji: list[Emoji],
    *,
    tiles_each: int,
    size_px: int = 64,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> int:
    """Cut parts out of the emoji that are not held out; returns how many. The folder appears when complete.

    Raises:
        UserError: `dest` is not empty or cannot be written, or a number is out of range.
    """
    if tiles_each < 1 or not 8 <= size_px <= min(SIDES_PX):
        what = f"tiles_each is {tiles_each}, size_px {size_px}"
        raise UserError(what, f"cut at least 1, of 8 to {min(SIDES_PX)} pixels")
    train = [one for one in emoji if not one.is_held_out]
    written = 0
    with new_folder(dest, manifest=False) as folder:
        (folder / "images").mkdir()
        with (folder / "metadata.jsonl").open("w", encoding="utf-8") as rows:
            for done, one in enumerate(train, start=1):
                for number, part in enumerate(_tiles_of(one, tiles_each, size_px)):
                    name = f"images/{one.path.stem}-{number}.png"
                    part.save(folder / name)
                    rows.write(json.dumps({"file_name": name, "text": one.text, "flip": one.may_flip}) + "\n")
                    written += 1
                on_progress(done, len(train))
    return written


def _tiles_of(one: Emoji, most: int, size_px: int) -> Iterator[Image.Image]:
    image = open_image(one.path)
    for number in range(most):
        keys = ((one.path.stem, number, attempt, "emoji tile") for attempt in range(MAX_ATTEMPTS))
        part = next((part for key in keys if (part := tile(image, size_px, *key))), None)
        if part is not None:
            yield part


def enlarging_cases(emoji: list[Emoji], part: str, num_cases: int, factor: int) -> list[Case]:
    """Whole emoji reduced by a factor, held out or seen, in an order drawn by key."""
    some = [one for one in emoji if one.is_held_out == (part == "held_out")]
    some.sort(key=lambda one: uniform("emoji tiles test order", one.path.stem))
    return [_case(one, factor) for one in some[:num_cases]]


def _case(one: Emoji, factor: int) -> Case:
    image = open_image(one.path)
    small = resize_and_crop(image, image.height // factor, image.width // factor)
    return Case("emoji", one.text, small, image)

"""Pairs of emoji scenes that differ in one thing, with the instruction that leads from one to the other.

One object fills the image, or there are two at half the side, beside each other or one above the other. Whatever the
instruction does not name is drawn from the same pixels in both images. `write_emoji_edits` writes the pairs as an
ImageFolder dataset for `task: edit`:

DEST/images/000000.png      the scene after the edit
DEST/sources/000000.png     the scene before it
DEST/metadata.jsonl         one row per pair: file_name, source_file_name, instruction, and flip: false

The objects and the held-out combinations are those of the composed scenes (`ldm.demos.emoji_composed`).
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image, ImageOps

from ldm.demos.emoji_captions import with_article
from ldm.demos.emoji_colours import COLOURS
from ldm.demos.emoji_scenes import HeldOut, Thing
from ldm.demos.emoji_scenes_drawing import ONE_ABOVE_ANOTHER, SIDE_BY_SIDE, Artwork, Cell
from ldm.errors import UserError
from ldm.io.folders import new_folder
from ldm.noise import choice, uniform

EDIT_KINDS = ("recolour", "replace", "remove", "add", "mirror")
WHERE_ADDED = {
    (SIDE_BY_SIDE, 0): "to the left of",
    (SIDE_BY_SIDE, 1): "to the right of",
    (ONE_ABOVE_ANOTHER, 0): "above",
    (ONE_ABOVE_ANOTHER, 1): "below",
}
"""Where the thing in the first or second cell of a layout is, seen from the other one."""

MIRRORED_SHARE = 0.1
"""The share of the objects that are never mirrored in training."""

LEAST_ASYMMETRY = 0.05
"""An object is mirrored only if it then differs by this much, as a mean over the image; white to black is 1."""

MAX_ATTEMPTS = 10_000

T = TypeVar("T")


@dataclass(frozen=True)
class Place:
    """A thing and where it is.

    Attributes:
        cell: at half the side, or None if it fills the image.
        mirrored: whether left and right are swapped.
    """

    thing: Thing
    cell: Cell | None = None
    mirrored: bool = False

    def draw_on(self, canvas: Image.Image, artwork: Artwork) -> None:
        """Draw the thing on an image of the artwork's size."""
        side = artwork.size_px if self.cell is None else artwork.size_px // 2
        drawing = artwork.draw_thing(self.thing, side)
        column, row = self.cell or (0, 0)
        quarter = artwork.size_px // 4
        canvas.paste(
            ImageOps.mirror(drawing) if self.mirrored else drawing, (column * quarter, row * quarter)
        )


@dataclass(frozen=True)
class EmojiEdit:
    """One edit.

    Attributes:
        kind: a name from EDIT_KINDS.
        before, after: the place that the instruction is about, None before "add" and after "remove".
        other: the place that stays as it is, or None if there is none.
    """

    kind: str
    before: Place | None
    after: Place | None
    other: Place | None = None

    @property
    def instruction(self) -> str:
        """The edit in words, such as "make the apple blue"."""
        if self.after is None:
            assert self.before is not None
            return f"remove the {self.before.thing.noun}"
        new = self.after.thing
        if self.before is None:
            assert self.other is not None
            return f"add {with_article(new.noun)} {self._where} the {self.other.thing.noun}"
        old = self.before.thing.noun
        match self.kind:
            case "recolour":
                return f"make the {old} {new.colour}"
            case "mirror":
                return f"mirror the {old}"
        return f"turn the {old} into {with_article(new.noun)}"

    @property
    def _where(self) -> str:
        assert self.after is not None and self.after.cell is not None
        layout = SIDE_BY_SIDE if self.after.cell in SIDE_BY_SIDE else ONE_ABOVE_ANOTHER
        return WHERE_ADDED[layout, layout.index(self.after.cell)]

    def draw(self, artwork: Artwork) -> tuple[Image.Image, Image.Image]:
        """The images before and after the edit, RGB."""
        return _drawn((self.before, self.other), artwork), _drawn((self.after, self.other), artwork)


def _drawn(places: Sequence[Place | None], artwork: Artwork) -> Image.Image:
    canvas = Image.new("RGB", (artwork.size_px, artwork.size_px), "white")
    for place in places:
        if place is not None:
            place.draw_on(canvas, artwork)
    return canvas


class EmojiEdits:
    """All edits of the artwork's objects: edit `index` of a set depends on its seed and index alone."""

    def __init__(self, artwork: Artwork, held_out: HeldOut) -> None:
        self.artwork = artwork
        self.held_out = held_out
        self._nouns = list(artwork.objects)
        self._coloured = [one.noun for one in artwork.objects.values() if one.takes_colours]

    def training(self, seed: int, index: int) -> EmojiEdit:
        """Edit `index` of the endless training set `seed`, without anything that is held out. The kinds take turns."""
        return self._first(seed, index, held_out=False)

    def testing(self, seed: int, index: int) -> EmojiEdit:
        """Edit `index` of the endless set `seed` of edits with a held-out combination before or after them."""
        return self._first(seed, index, held_out=True)

    def _first(self, seed: int, index: int, *, held_out: bool) -> EmojiEdit:
        """Rejection sampling: each attempt has its own key.

        Raises:
            UserError: there is no such edit of these objects, or hardly any.
        """
        kind = EDIT_KINDS[index % len(EDIT_KINDS)]
        tries = (self._sample(kind, seed, index, attempt) for attempt in range(MAX_ATTEMPTS))
        for edit in tries:
            if edit and self.is_held_out(edit) == held_out:
                return edit
        what = "held-out" if held_out else "training"
        raise UserError(
            f"there is hardly any {what} edit of the kind {kind}", "use a dataset of more objects"
        )

    def is_held_out(self, edit: EmojiEdit) -> bool:
        """Whether a combination is held out: an object in a colour, two objects together, or a mirrored object.

        "turn the dog into a cat" is the pair of the two objects as well.
        """
        things = [place.thing for place in (edit.before, edit.after, edit.other) if place]
        pairs = {tuple(sorted({one.noun, two.noun})) for one in things for two in things}
        if any((thing.noun, thing.colour) in self.held_out.colour for thing in things):
            return True
        if edit.kind == "mirror":
            return uniform("emoji held out", things[0].noun, "mirror") < MIRRORED_SHARE
        return bool(pairs & self.held_out.pair)

    def _sample(self, kind: str, *key: int | str) -> EmojiEdit | None:
        """One edit of a kind, or None if what was drawn changes nothing."""
        key = ("emoji edit", *key)
        noun = _pick(key, "object", self._coloured if kind == "recolour" else self._nouns)
        if kind == "mirror":
            place = Place(Thing(noun))
            return EmojiEdit(kind, place, replace(place, mirrored=True)) if noun in self._lopsided else None
        alone = kind in ("recolour", "replace") and choice(2, *key, "alone") == 0
        layout = _pick(key, "layout", (SIDE_BY_SIDE, ONE_ABOVE_ANOTHER))
        number = choice(2, *key, "cell")
        other = None if alone else Place(Thing(_pick(key, "other", self._nouns)), layout[1 - number])
        place = Place(Thing(noun), None if alone else layout[number])
        changed = self._changed(kind, place, *key)
        if other and other.thing.noun in {each.thing.noun for each in changed if each}:
            return None
        return EmojiEdit(kind, *changed, other) if changed[0] != changed[1] else None

    def _changed(self, kind: str, place: Place, *key: int | str) -> tuple[Place | None, Place | None]:
        """The named place before and after the edit; twice the same if the draw changes nothing."""
        noun = place.thing.noun
        match kind:
            case "recolour":
                old = _pick(key, "old colour", (None, None, *COLOURS))
                new = _pick(key, "new colour", list(COLOURS))
                if new in (old, self._own_colour(noun) if old is None else None):
                    return place, place
                return replace(place, thing=Thing(noun, old)), replace(place, thing=Thing(noun, new))
            case "replace":
                return place, replace(place, thing=Thing(_pick(key, "new object", self._nouns)))
            case "add":
                return None, place
        return place, None

    def _own_colour(self, noun: str) -> str | None:
        main = self.artwork.objects[noun].main
        return main.name if main else None

    @cached_property
    def _lopsided(self) -> frozenset[str]:
        """The objects that look different when they are mirrored."""
        return frozenset(noun for noun in self._nouns if self._asymmetry(noun) > LEAST_ASYMMETRY)

    def _asymmetry(self, noun: str) -> float:
        drawing = self.artwork.draw_thing(Thing(noun), self.artwork.size_px)
        levels = np.asarray(drawing, np.float32) / 255
        return float(np.abs(levels - levels[:, ::-1]).mean())


def _pick(key: Sequence[int | str], what: str, choices: Sequence[T]) -> T:
    return choices[choice(len(choices), *key, what)]


def write_emoji_edits(
    dest: Path,
    edits: EmojiEdits,
    *,
    num_edits: int,
    seed: int = 0,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Draw the first `num_edits` training edits of `seed`. The folder appears when complete, or not at all.

    Raises:
        UserError: `dest` is not empty or cannot be written, or the number is too small.
    """
    if num_edits < 1:
        raise UserError(f"num_edits is {num_edits}", "draw at least 1")
    with new_folder(dest, manifest=False) as folder:
        for name in ("images", "sources"):
            (folder / name).mkdir()
        with (folder / "metadata.jsonl").open("w", encoding="utf-8") as rows:
            for row in _rows(folder, edits, num_edits, seed, on_progress):
                rows.write(json.dumps(row) + "\n")


def _rows(
    folder: Path, edits: EmojiEdits, num_edits: int, seed: int, on_progress: Callable[[int, int], None]
) -> Iterator[dict[str, str | bool]]:
    """Draw the images of each edit, and yield its row."""
    for index in range(num_edits):
        edit = edits.training(seed, index)
        names = {"file_name": f"images/{index:06d}.png", "source_file_name": f"sources/{index:06d}.png"}
        for image, name in zip(edit.draw(edits.artwork), ("source_file_name", "file_name"), strict=True):
            image.save(folder / names[name])
        on_progress(index + 1, num_edits)
        yield {**names, "instruction": edit.instruction, "flip": False}

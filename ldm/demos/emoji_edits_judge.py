"""Whether an edited image of emoji shows what the instruction asked for, and nothing else that is new.

The place of everything is known, so each place is judged by itself: it shows the thing whose drawing there is nearest,
in squared differences of pixels after halving the image (`ldm.demos.emoji_judge`), or nothing.
"""

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from ldm.demos.emoji_colours import COLOURS
from ldm.demos.emoji_edits import EmojiEdit, Place
from ldm.demos.emoji_judge import halved
from ldm.demos.emoji_scenes import Thing
from ldm.demos.emoji_scenes_drawing import ONE_ABOVE_ANOTHER, SIDE_BY_SIDE, Artwork, Cell

LARGEST_REST = 0.01
"""Where nothing should be, the mean squared difference from white may be no larger; white to black is 1."""


class EmojiEditJudge:
    """Judges edits of the artwork's size."""

    def __init__(self, artwork: Artwork) -> None:
        self.artwork = artwork
        self._drawings: dict[tuple[bool, bool], tuple[list[Place | None], Tensor]] = {}

    def agrees(self, edit: EmojiEdit, image: Image.Image) -> dict[str, bool]:
        """The verdicts on an image made from the source by the instruction.

        changed: the named attribute is as the instruction asks: the colour, the object, its absence or presence, or
            its direction.
        kept: everything else is as before: the other attributes of the named thing, the other thing, and the white.
        all: both.
        """
        pixels = halved([image])[0]
        cells = _cells_of(edit)
        found = [self._nearest(pixels, cell, with_mirrored=edit.kind == "mirror") for cell in cells]
        changed, kept = self._compare(edit, found[0])
        if len(cells) == 2:
            assert edit.other is not None
            kept &= self._looks(found[1]) == self._looks(edit.other)
            kept &= _rest(pixels, cells) <= LARGEST_REST
        return {"changed": changed, "kept": kept, "all": changed and kept}

    def _compare(self, edit: EmojiEdit, seen: Place | None) -> tuple[bool, bool]:
        """Whether the named attribute is right, and whether the others of the named thing are as before."""
        if edit.before is None or edit.after is None:
            return self._looks(seen) == self._looks(edit.after), True
        if seen is None:
            return False, False
        wanted, found = self._looks(edit.after), self._looks(seen)
        assert wanted is not None and found is not None
        named = {"replace": 0, "recolour": 1, "mirror": 2}[edit.kind]
        others = [number for number in range(3) if number != named]
        if edit.kind == "replace":
            return found == wanted, True
        return found[named] == wanted[named], all(found[number] == wanted[number] for number in others)

    def _looks(self, place: Place | None) -> tuple[str, str | None, bool] | None:
        """Noun, colour and direction. The colour of an object as it is, is its own."""
        if place is None:
            return None
        one = self.artwork.objects[place.thing.noun]
        own = one.main.name if one.main and one.takes_colours else None
        return place.thing.noun, place.thing.colour or own, place.mirrored

    def _nearest(self, pixels: Tensor, cell: Cell | None, *, with_mirrored: bool) -> Place | None:
        """What a place shows."""
        key = (cell is not None, with_mirrored)
        if key not in self._drawings:
            self._drawings[key] = self._candidates(*key)
        places, drawings = self._drawings[key]
        part = pixels if cell is None else _part(pixels, cell)
        return places[int((drawings - part).square().flatten(1).sum(dim=1).argmin())]

    def _candidates(self, small: bool, with_mirrored: bool) -> tuple[list[Place | None], Tensor]:
        """Every object in every colour, mirrored ones too if asked for, and at half the side nothing."""
        side = self.artwork.size_px // 2 if small else self.artwork.size_px
        places: list[Place | None] = [Place(thing) for thing in self._things()]
        drawings = halved([self.artwork.draw_thing(thing, side) for thing in self._things()])
        if with_mirrored:
            places += [Place(thing, mirrored=True) for thing in self._things()]
            drawings = torch.cat([drawings, drawings.flip(-1)])
        if small:
            places.append(None)
            drawings = torch.cat([drawings, torch.ones_like(drawings[:1])])
        return places, drawings

    def _things(self) -> Sequence[Thing]:
        return [
            Thing(one.noun, colour)
            for one in self.artwork.objects.values()
            for colour in ((None, *COLOURS) if one.takes_colours else (None,))
        ]


def _cells_of(edit: EmojiEdit) -> list[Cell | None]:
    """The cell of the named place, and of the other one if there are two."""
    named = edit.before or edit.after
    assert named is not None
    if named.cell is None:
        return [None]
    layout = SIDE_BY_SIDE if named.cell in SIDE_BY_SIDE else ONE_ABOVE_ANOTHER
    return [named.cell, next(cell for cell in layout if cell != named.cell)]


def _part(pixels: Tensor, cell: Cell) -> Tensor:
    """A view of one cell of a halved image [3, S, S]."""
    quarter = pixels.shape[-1] // 4
    column, row = cell
    top, left = row * quarter, column * quarter
    return pixels[:, top : top + 2 * quarter, left : left + 2 * quarter]


def _rest(pixels: Tensor, cells: Sequence[Cell | None]) -> float:
    """The mean squared difference from white outside the cells."""
    rest = (1 - pixels).square()
    outside = torch.ones_like(rest)
    for cell in cells:
        if cell is not None:
            _part(outside, cell).zero_()
    return float((rest * outside).sum() / outside.sum())

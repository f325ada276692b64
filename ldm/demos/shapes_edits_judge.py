"""Whether an edited image shows what the instruction asked for, and nothing else that is new.

The scene before the edit and the place of everything in it are known, so each attribute of each thing is judged by
itself, and so is its place.
"""

from collections.abc import Sequence
from math import dist

from PIL import Image

from ldm.demos.shapes import Thing
from ldm.demos.shapes_drawing import Box
from ldm.demos.shapes_edits import Edit
from ldm.demos.shapes_judge import Observed, ObservedThing, holds, judge

LARGEST_SHIFT = 0.07
"""A thing whose box is farther than this from where it was has moved, as a fraction of the image's side (2.2 of 32
pixels; the judge places the things of a drawing to within one pixel)."""
LOOKS = ("shape", "colour", "size")
ATTRIBUTE = {"recolour": "colour", "reshape": "shape"}
"""The look that an edit changes."""


def agrees_with_edit(edit: Edit, image: Image.Image) -> dict[str, bool]:
    """The verdicts on an image made from `edit.source` by `edit.instruction`.

    changed: the named attribute is as the instruction asks: the colour, the shape, the thing's absence, or the
        relation to the other thing.
    kept: everything else is as before: the other looks of the named thing, the looks and places of both things, their
        number, and the background.
    all: both.
    """
    observed = judge(image)
    named, other = _find(edit, observed)
    verdict = {"changed": _changed(edit, named, other), "kept": _kept(edit, observed, named, other)}
    return verdict | {"all": all(verdict.values())}


def _find(edit: Edit, observed: Observed) -> tuple[ObservedThing | None, ObservedThing | None]:
    """The observed things that are the named one and the other one of the source, where they are visible.

    The other one is what is nearest to its place. The named one is what is nearest to its own; after "move" it may be
    anywhere.
    """
    seen = list(observed.things)
    other = None
    if len(edit.source.things) == 2:
        other = _nearest(edit.source_boxes[1], seen)
    rest = [thing for thing in seen if thing is not other]
    if edit.kind == "move":
        return _nearest(edit.target_boxes[0], rest, within=2), other
    return _nearest(edit.source_boxes[0], rest), other


def _nearest(box: Box, seen: Sequence[ObservedThing], *, within: float | None = None) -> ObservedThing | None:
    """The thing nearest to a place, if it is no farther than `within`, by default the size of the thing there."""
    limit = box.extent if within is None else within
    near = [thing for thing in seen if _shift(box, thing) < limit]
    return min(near, key=lambda thing: _shift(box, thing), default=None)


def _shift(box: Box, thing: ObservedThing) -> float:
    """The distance between the centres of the two boxes."""
    left, top, right, bottom = thing.box
    return dist(box.centre, ((left + right) / 2, (top + bottom) / 2))


def _changed(edit: Edit, named: ObservedThing | None, other: ObservedThing | None) -> bool:
    if edit.kind == "remove":
        return named is None
    if named is None:
        return False
    if edit.kind == "move":
        return other is not None and holds(edit.target.relation, named, other)
    name = ATTRIBUTE[edit.kind]
    return bool(getattr(named, name) == getattr(edit.target.things[0], name))


def _kept(edit: Edit, observed: Observed, named: ObservedThing | None, other: ObservedThing | None) -> bool:
    if observed.background != edit.target.background or len(observed.things) != len(edit.target.things):
        return False
    if len(edit.source.things) == 2 and not _same(edit.source.things[1], other, edit.source_boxes[1]):
        return False
    if edit.kind == "remove":
        return True
    place = None if edit.kind == "move" else edit.source_boxes[0]
    return _same(edit.source.things[0], named, place, besides=ATTRIBUTE.get(edit.kind))


def _same(thing: Thing, seen: ObservedThing | None, place: Box | None, *, besides: str | None = None) -> bool:
    """Whether the thing looks as before, but for one attribute, and is where it was, if `place` is given."""
    if seen is None or (place and _shift(place, seen) > LARGEST_SHIFT):
        return False
    return all(getattr(seen, name) == getattr(thing, name) for name in LOOKS if name != besides)

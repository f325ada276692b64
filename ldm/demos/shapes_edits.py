"""Pairs of drawn scenes that differ in one attribute, with the instruction that leads from one to the other.

Each scene has one large thing, or two in a relation, on white. Whatever the instruction does not name is drawn in the
same place in both images. `write_edits` writes the pairs as an ImageFolder dataset for `task: edit`:

DEST/images/000000.png      the scene after the edit
DEST/sources/000000.png     the scene before it
DEST/metadata.jsonl         one row per pair: file_name, source_file_name, instruction, and flip: false
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import TypeVar

from PIL import Image

from ldm.demos.shapes import COLOURS, RELATIONS, SHAPES, Scene, Thing, is_held_out
from ldm.demos.shapes_drawing import ACROSS, GAP, MARGIN, SMALLEST_SIZE_PX, Box, draw_at, place
from ldm.errors import UserError
from ldm.io.folders import new_folder
from ldm.noise import choice, uniform

KINDS = ("recolour", "reshape", "remove", "move")
"""The attribute that changes: the colour, the shape, the number of things, or the relation of two things."""
VERTICAL = ("above", "below")

T = TypeVar("T")


@dataclass(frozen=True)
class Edit:
    """One edit. The instruction is about the first thing of `source`, called the named one.

    Attributes:
        kind: a name from KINDS.
        target: the scene after the edit, its things in the order of `source`. Without the named one after "remove".
        source_boxes, target_boxes: the place of each thing of the two scenes.
    """

    kind: str
    source: Scene
    target: Scene
    source_boxes: tuple[Box, ...]
    target_boxes: tuple[Box, ...]

    @property
    def named(self) -> Thing:
        """The thing that the instruction is about, as it is before the edit."""
        return self.source.things[0]

    @property
    def instruction(self) -> str:
        """The edit in words, such as "make the red circle blue"."""
        what = _called(self.named)
        match self.kind:
            case "recolour":
                return f"make {what} {self.target.things[0].colour}"
            case "reshape":
                return f"turn {what} into a {self.target.things[0].shape}"
            case "remove":
                return f"remove {what}"
        return f"move {what} {self.target.relation} {_called(self.source.things[1])}"

    def draw(self, size_px: int) -> tuple[Image.Image, Image.Image]:
        """The images before and after the edit, RGB, size_px square."""
        before = draw_at(self.source, self.source_boxes, size_px)
        return before, draw_at(self.target, self.target_boxes, size_px)


def _called(thing: Thing) -> str:
    return f"the {thing.colour} {thing.shape}"


def training_edit(seed: int, index: int) -> Edit:
    """Edit `index` of the endless training set `seed`; neither of its scenes is held out. The kinds take turns."""
    return _first_edit(seed, index, held_out=False)


def held_out_edit(seed: int, index: int) -> Edit:
    """Edit `index` of the endless set `seed` of edits that lead to, or start from, a held-out combination."""
    return _first_edit(seed, index, held_out=True)


def _first_edit(seed: int, index: int, *, held_out: bool) -> Edit:
    """Rejection sampling, as for scenes: each attempt has its own key."""
    kind = KINDS[index % len(KINDS)]
    tries = (_sample(kind, "shapes edit", seed, index, attempt) for attempt in count())
    return next(edit for edit in tries if edit and _is_held_out(edit) == held_out)


def _is_held_out(edit: Edit) -> bool:
    return is_held_out(edit.source) or is_held_out(edit.target)


def _sample(kind: str, *key: int | str) -> Edit | None:
    """One edit of a kind, or None if the things moved would not fit."""
    pick = partial(_pick, key)
    scene = _source(kind, *key)
    boxes = tuple(place(scene, *key))
    named, others = scene.things[0], scene.things[1:]
    match kind:
        case "recolour":
            taken = {thing.colour for thing in scene.things}
            colour = pick("new colour", [name for name in COLOURS if name not in taken])
            changed = replace(named, colour=colour)
        case "reshape":
            changed = replace(
                named, shape=pick("new shape", [name for name in SHAPES if name != named.shape])
            )
        case "remove":
            return Edit(kind, scene, Scene(others), boxes, boxes[1:])
        case _:
            across = VERTICAL if scene.relation not in VERTICAL else RELATIONS[2:]
            relation = pick("new relation", across)
            moved = _moved(boxes[0], boxes[1], relation, *key)
            return (
                Edit(kind, scene, replace(scene, relation=relation), boxes, (moved, boxes[1]))
                if moved
                else None
            )
    return Edit(kind, scene, replace(scene, things=(changed, *others)), boxes, boxes)


def _pick(key: Sequence[int | str], what: str, choices: Sequence[T]) -> T:
    return choices[choice(len(choices), *key, what)]


def _source(kind: str, *key: int | str) -> Scene:
    """A scene of two things, or one in half of the edits that need no second."""
    pick = partial(_pick, key)
    first = Thing(pick("shape", SHAPES), pick("colour", list(COLOURS)), "large")
    if kind in ("recolour", "reshape") and pick("alone", [True, False]):
        return Scene((first,))
    others = [colour for colour in COLOURS if colour != first.colour]
    return Scene(
        (first, Thing(pick("shape 2", SHAPES), pick("colour 2", others), "large")),
        pick("relation", RELATIONS),
    )


def _moved(box: Box, other: Box, relation: str, *key: int | str) -> Box | None:
    """A box of the same extent in this relation to the other one, or None if there is no room for it."""
    roll = partial(uniform, *key)
    vertical = relation in VERTICAL
    start, line = (other.top, other.centre[0]) if vertical else (other.left, other.centre[1])
    if relation in ("above", "to the left of"):
        low, high = MARGIN, start - GAP - box.extent
    else:
        low, high = start + other.extent + GAP, 1 - MARGIN - box.extent
    if low > high:
        return None
    along = low + (high - low) * roll("along")
    across = line - box.extent / 2 + ACROSS * (2 * roll("across") - 1)
    across = min(max(across, MARGIN), 1 - MARGIN - box.extent)
    return Box(across, along, box.extent) if vertical else Box(along, across, box.extent)


def write_edits(
    dest: Path, *, num_edits: int, size_px: int = 64, seed: int = 0, held_out: bool = False
) -> None:
    """Draw the first `num_edits` training edits of `seed`, or its held-out edits with `held_out`.

    The folder appears when complete, or not at all. Row i depends only on (seed, i, held_out).

    Raises:
        UserError: `dest` is not empty or cannot be written, or a number is too small.
    """
    if num_edits < 1:
        raise UserError(f"num_edits is {num_edits}", "draw at least 1")
    if size_px < SMALLEST_SIZE_PX:
        raise UserError(f"size_px is {size_px}", f"choose {SMALLEST_SIZE_PX} or more")
    edit_of = held_out_edit if held_out else training_edit
    with (
        new_folder(dest, manifest=False) as folder,
        (folder / "metadata.jsonl").open("w", encoding="utf-8") as rows,
    ):
        for name in ("images", "sources"):
            (folder / name).mkdir()
        for index in range(num_edits):
            edit = edit_of(seed, index)
            row = {"file_name": f"images/{index:06d}.png", "source_file_name": f"sources/{index:06d}.png"}
            for image, name in zip(edit.draw(size_px), ("source_file_name", "file_name"), strict=True):
                image.save(folder / row[name])
            rows.write(json.dumps(row | {"instruction": edit.instruction, "flip": False}) + "\n")

"""Draw a scene of shapes: antialiased, without overlaps, with its relation strictly true.

Every shape fills a square box. Lengths are fractions of the image's side, with x to the right and y down. Boxes keep a
distance of `MARGIN` to the image's edge and of `GAP` to each other. All positions follow from the scene and a key.

`write_shapes` writes scenes as an ImageFolder dataset:

DEST/images/000000.png      RGB, size_px square
DEST/metadata.jsonl         one row per image: file_name, text, and flip: false ("to the left of" must stay true)
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

from PIL import Image, ImageDraw

from ldm.demos.shapes import BACKGROUNDS, COLOURS, Scene, held_out_scene, training_scene
from ldm.errors import UserError
from ldm.io.folders import new_folder
from ldm.noise import permutation, uniform

EXTENTS = {"small": 0.24, "large": 0.40}
EXTENT_JITTER = 0.05
MARGIN = 0.04
GAP = 0.08
ACROSS = 0.06
"""Two related things are within this distance of a common centre line."""
SUPERSAMPLING = 8
SMALLEST_SIZE_PX = 32

Point = tuple[float, float]
Roll = Callable[[str], float]


@dataclass(frozen=True)
class Box:
    """A square around one thing: its upper left corner and its side, as fractions of the image's side."""

    left: float
    top: float
    extent: float

    @property
    def centre(self) -> Point:
        return self.left + self.extent / 2, self.top + self.extent / 2

    @property
    def right(self) -> float:
        return self.left + self.extent

    @property
    def bottom(self) -> float:
        return self.top + self.extent


def draw(scene: Scene, size_px: int, *key: int | str) -> Image.Image:
    """The scene as an RGB image, size_px square (32 or more).

    The key, for example (seed, index), selects one of the scene's possible layouts.
    """
    return draw_at(scene, place(scene, *key), size_px)


def draw_at(scene: Scene, boxes: Sequence[Box], size_px: int) -> Image.Image:
    """The scene with its things in these boxes, as an RGB image, size_px square."""
    image = Image.new("RGB", (size_px, size_px), BACKGROUNDS[scene.background])
    for thing, box in zip(scene.things, boxes, strict=True):
        corner = (box.left * size_px, box.top * size_px)
        mask = coverage(thing.shape, corner, box.extent * size_px, (size_px, size_px))
        image.paste(COLOURS[thing.colour], mask=mask)
    return image


def place(scene: Scene, *key: int | str) -> list[Box]:
    """The boxes of a scene's things, a pure function of scene and key."""
    roll = partial(uniform, "shapes layout", scene.caption, *key)
    extents = [
        EXTENTS[thing.size] * (1 + EXTENT_JITTER * (2 * roll(f"extent {i}") - 1))
        for i, thing in enumerate(scene.things)
    ]
    if scene.relation:
        return _place_pair(extents, scene.relation, roll)
    if len(extents) == 1:
        return [_within(0, 0, 1, extents[0], roll, "position")]
    cells = permutation(4, "shapes layout", scene.caption, *key)
    return [
        _within(cell % 2 / 2, cell // 2 / 2, 0.5, extent, roll, f"position {cell}")
        for cell, extent in zip(cells, extents, strict=False)
    ]


def _within(left: float, top: float, side: float, extent: float, roll: Roll, what: str) -> Box:
    """A random box in the square at (left, top), `MARGIN` from its sides, so that neighbours are `GAP` apart."""
    slack = side - 2 * MARGIN - extent
    return Box(left + MARGIN + slack * roll(f"{what} x"), top + MARGIN + slack * roll(f"{what} y"), extent)


def _place_pair(extents: list[float], relation: str, roll: Roll) -> list[Box]:
    """Two boxes in a row or column, arranged as the relation says."""
    in_order = relation in ("above", "to the left of")
    ahead, behind = extents if in_order else extents[::-1]
    slack = 1 - 2 * MARGIN - GAP - ahead - behind
    before, after = sorted((roll("along 1"), roll("along 2")))
    starts = [MARGIN + slack * before, MARGIN + ahead + GAP + slack * after]
    line = _between(max(extents), roll("line"))
    boxes = []
    for start, extent, what in zip(starts, (ahead, behind), ("across 1", "across 2"), strict=True):
        low, high = _between(extent, 0), _between(extent, 1)
        across = min(max(line + ACROSS * (2 * roll(what) - 1), low), high) - extent / 2
        corner = (across, start) if relation in ("above", "below") else (start, across)
        boxes.append(Box(*corner, extent))
    return boxes if in_order else boxes[::-1]


def _between(extent: float, fraction: float) -> float:
    """A centre between the first (0) and last (1) position at which a box of this extent is inside the margins."""
    first = MARGIN + extent / 2
    return first + fraction * (1 - 2 * first)


def coverage(shape: str, corner_px: Point, extent_px: float, size_px: tuple[int, int]) -> Image.Image:
    """How much of each pixel a shape covers, 0 to 255: a grey image of size_px (width, height)."""
    scale = SUPERSAMPLING
    mask = Image.new("L", (size_px[0] * scale, size_px[1] * scale), 0)
    left, top = corner_px[0] * scale, corner_px[1] * scale
    side = extent_px * scale - 1  # Pillow's polygons use integer pixels and include the last ones
    points = [(round(left + x * side), round(top + y * side)) for x, y in outline(shape)]
    ImageDraw.Draw(mask).polygon(points, fill=255)
    return mask.reduce(scale)


@cache
def outline(shape: str) -> tuple[Point, ...]:
    """The corners of a shape that fills the unit square."""
    match shape:
        case "circle":
            return tuple(_on_circle(i / 48, 0.5, 0.5) for i in range(48))
        case "square":
            return ((0, 0), (1, 0), (1, 1), (0, 1))
        case "triangle":
            return ((0.5, 0), (1, 1), (0, 1))
        case "star":
            return tuple(_star())
        case "cross":
            ends = [
                (0, 1),
                (0, 2),
                (1, 2),
                (1, 3),
                (2, 3),
                (2, 2),
                (3, 2),
                (3, 1),
                (2, 1),
                (2, 0),
                (1, 0),
                (1, 1),
            ]
            return tuple((x / 3, y / 3) for x, y in ends)
    raise AssertionError(shape)


def _star(inner: float = 0.45) -> list[Point]:
    """A five-pointed star that fills the unit square; `inner` is the radius of the notches relative to the points'."""
    corners = [_on_circle(i / 10, 1 if i % 2 == 0 else inner, 0) for i in range(10)]
    width, bottom = max(x for x, _ in corners), max(y for _, y in corners)
    return [((x / width + 1) / 2, (y + 1) / (bottom + 1)) for x, y in corners]


def _on_circle(turn: float, radius: float, centre: float) -> Point:
    """The point at `turn` (1 is a full turn) clockwise from the top."""
    angle = 2 * math.pi * turn
    return centre + radius * math.sin(angle), centre - radius * math.cos(angle)


def write_shapes(
    dest: Path,
    *,
    num_images: int,
    size_px: int = 64,
    seed: int = 0,
    held_out: bool = False,
    plain: bool = False,
) -> None:
    """Draw the first `num_images` training scenes of `seed`, or its held-out scenes with `held_out`.

    The folder appears when complete, or not at all. Row i depends only on (seed, i, held_out, plain).

    Args:
        plain: only scenes with one large thing, or two in a relation, on white.

    Raises:
        UserError: `dest` is not empty or cannot be written, or a number is too small.
    """
    if num_images < 1:
        raise UserError(f"num_images is {num_images}", "draw at least 1")
    if size_px < SMALLEST_SIZE_PX:
        raise UserError(
            f"size_px is {size_px}",
            f"choose {SMALLEST_SIZE_PX} or more, to recognise small things",
        )
    scene_of = held_out_scene if held_out else training_scene
    with (
        new_folder(dest, manifest=False) as folder,
        (folder / "metadata.jsonl").open("w", encoding="utf-8") as rows,
    ):
        (folder / "images").mkdir()
        for index in range(num_images):
            scene = scene_of(seed, index, plain=plain)
            name = f"images/{index:06d}.png"
            draw(scene, size_px, seed, index).save(folder / name)
            rows.write(json.dumps({"file_name": name, "text": scene.caption, "flip": False}) + "\n")

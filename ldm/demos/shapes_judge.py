"""Recognise what an image of drawn shapes shows: the background, and each thing's shape, colour, size and place.

No pretrained network is involved. Each connected region of ink is a thing, and its shape is the one whose drawing, with
the same centre and area, has the least squared error. Anything too far from every name is "unclear", which agrees with
nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import permutations

import numpy as np
from PIL import Image

from ldm.demos.shapes import BACKGROUNDS, COLOURS, SHAPES, Scene, Thing, parse_caption
from ldm.demos.shapes_drawing import EXTENTS, coverage, outline
from ldm.demos.shapes_regions import (
    Array,
    Labels,
    Point,
    amount_of,
    bounds,
    centroid,
    grow,
    ink_of,
    label_regions,
    read_pixels,
    rim_colour,
    smooth,
)
from ldm.errors import UserError

ATTRIBUTES = ("shape", "colour", "size", "count", "relation", "background")
UNCLEAR = "unclear"
SMALLEST_FRACTION = 0.008
"""Ink that covers less of the image than this is a speck, not a thing (a small star covers 0.02)."""
LARGEST_COLOUR_ERROR = 90.0
"""A colour farther than this from every named one is unclear (Euclidean, RGB; named ones are at least 98 apart)."""
LARGEST_SHAPE_ERROR = 0.12
"""A thing is unclear if its best fitting shape leaves more than this share of its ink unexplained."""
LIMIT_OF_SMALL = (EXTENTS["small"] * EXTENTS["large"]) ** 0.5
SOFTNESS_FRACTION = 1 / 32
"""How soft an edge may be, relative to the image's side. With more, a small star could pass as a large circle."""


@dataclass(frozen=True)
class ObservedThing:
    """One thing seen in an image.

    Attributes:
        shape, colour, size: names of `ldm.demos.shapes` (the colour may be a background's), or "unclear".
        centre: (x, y) of its ink, as fractions of the image's width and height.
        box: (left, top, right, bottom), also as fractions.
        shape_error: share of the ink that the shape leaves unexplained; 0 is a perfect drawing.
    """

    shape: str
    colour: str
    size: str
    centre: Point
    box: tuple[float, float, float, float]
    shape_error: float


@dataclass(frozen=True)
class Observed:
    """What the judge sees: a background (a name or "unclear") and the things, largest first."""

    background: str
    things: tuple[ObservedThing, ...]


def judge(image: Image.Image) -> Observed:
    """What an image of any size and mode shows (drawings are recognised from 32 pixels up)."""
    pixels = read_pixels(image)
    background = rim_colour(pixels)
    ink = ink_of(smooth(pixels), background)
    labels = label_regions(ink > 0.5)
    areas = np.bincount(labels.ravel())[1:]
    big = [int(i) + 1 for i in np.argsort(-areas, kind="stable") if areas[i] >= SMALLEST_FRACTION * ink.size]
    things = tuple(_observe(pixels, background, ink, labels, label) for label in big)
    return Observed(_colour_name(background), things)


def _observe(pixels: Array, background: Array, ink: Array, labels: Labels, label: int) -> ObservedThing:
    """One region, measured on the unsmoothed pixels in and around it."""
    height, width = labels.shape
    region, others = labels == label, (labels > 0) & (labels != label)
    solid = region & (ink >= min(0.9, float(np.quantile(ink[region], 0.7))))
    colour = np.median(pixels[solid], axis=0)
    softness_px = max(1, round(min(height, width) * SOFTNESS_FRACTION))
    near = grow(region, 2 * softness_px) & ~grow(others, softness_px)
    amount = amount_of(pixels, background, colour) * near
    if amount.sum() < region.sum() / 2:  # not on a plain background: its surroundings cancel it
        amount = region.astype(np.float32)
    left, top, right, bottom = bounds(region | (amount > 0.5))
    x_0, y_0 = max(left - 2 * softness_px, 0), max(top - 2 * softness_px, 0)
    window = amount[y_0 : bottom + 2 * softness_px, x_0 : right + 2 * softness_px]
    shape, error = _shape(window, softness_px)
    x, y = centroid(window)
    extent = max((right - left) / width, (bottom - top) / height)
    return ObservedThing(
        shape=shape if error <= LARGEST_SHAPE_ERROR else UNCLEAR,
        colour=_colour_name(colour),
        size="small" if extent < LIMIT_OF_SMALL else "large",
        centre=((x_0 + x) / width, (y_0 + y) / height),
        box=(left / width, top / height, right / width, bottom / height),
        shape_error=error,
    )


def _shape(amount: Array, softness_px: int) -> tuple[str, float]:
    """The shape whose drawing leaves the least ink unexplained, and that share."""
    seen = smooth(amount)
    errors = {shape: _shape_error(amount, seen, shape, softness_px) for shape in SHAPES}
    best = min(errors, key=lambda shape: errors[shape])
    return best, errors[best]


def _shape_error(amount: Array, seen: Array, shape: str, softness_px: int) -> float:
    """sum (seen - drawing)^2 / sum seen^2, for a drawing with the same centre and area.

    `seen` is the amount smoothed once against noise; the drawing is smoothed as often as fits best, because the image
    may be blurred.
    """
    area, (x, y) = _area_and_centre(shape)
    extent = max(float(amount.sum()) / area, 1.0) ** 0.5
    at_x, at_y = centroid(amount)
    height, width = amount.shape
    mask = coverage(shape, (at_x - x * extent, at_y - y * extent), extent, (width, height))
    drawing = np.asarray(mask, np.float32) / np.float32(255)
    errors = []
    for _ in range(softness_px):
        drawing = smooth(drawing)
        errors.append(float(((seen - drawing) ** 2).sum()))
    return min(errors) / float((seen**2).sum())


@cache
def _area_and_centre(shape: str) -> tuple[float, Point]:
    """Area and centroid of the shape in the unit square (the shoelace formula)."""
    points = np.array(outline(shape))
    x, y = points.T
    next_x, next_y = np.roll(points, -1, axis=0).T
    cross = x * next_y - next_x * y
    area = cross.sum() / 2
    centre_x, centre_y = ((x + next_x) @ cross) / (6 * area), ((y + next_y) @ cross) / (6 * area)
    return abs(float(area)), (float(centre_x), float(centre_y))


def _colour_name(rgb: Array) -> str:
    """The nearest name of a colour or background, or "unclear"."""
    names = COLOURS | BACKGROUNDS
    errors = np.linalg.norm(np.array(list(names.values())) - rgb, axis=1)
    return list(names)[int(errors.argmin())] if errors.min() <= LARGEST_COLOUR_ERROR else UNCLEAR


# Agreement with a scene


def agrees(scene: Scene, observed: Observed) -> dict[str, bool]:
    """Which attributes of the scene the image has, each judged as independently as possible.

    shape, colour, size: for two related things, both have the right ones in any order; for one or several equal
        things, every thing has the right one, however many there are.
    count: the number of things is right. background: its colour is right.
    relation: only if the scene has one: it holds for the things most like the scene's first and second. It is wrong if
        the image does not show which is which.
    """
    seen = observed.things
    right = {name: _same(scene, seen, name) for name in ("shape", "colour", "size")}
    right["count"] = len(seen) == len(scene.things)
    right["background"] = observed.background == scene.background
    if scene.relation:
        right["relation"] = _relation_holds(scene, seen)
    return right


def follows(prompts: Sequence[str], images: Sequence[Image.Image]) -> list[bool]:
    """Whether each image shows all that its prompt, a caption of a drawn scene, says.

    Raises:
        UserError: a prompt is not such a caption.
    """
    return [
        all(agrees(parse_caption(prompt), judge(image)).values())
        for prompt, image in zip(prompts, images, strict=True)
    ]


def is_caption(text: str) -> bool:
    """Whether a text is a caption of a drawn scene."""
    try:
        parse_caption(text)
    except UserError:
        return False
    return True


def _same(scene: Scene, seen: tuple[ObservedThing, ...], name: str) -> bool:
    """Whether the observed things have the scene's shapes, colours or sizes, in any order."""
    wanted, found = ([getattr(thing, name) for thing in things] for things in (scene.things, seen))
    return sorted(wanted) == sorted(found) if scene.relation else set(wanted) == set(found)


def _relation_holds(scene: Scene, seen: tuple[ObservedThing, ...]) -> bool:
    """Whether the relation holds for the ordered pair most like the scene's two things; if tied, for all such pairs."""
    first, second = scene.things
    likeness = {pair: _alike(first, pair[0]) + _alike(second, pair[1]) for pair in permutations(seen, 2)}
    likeliest = [pair for pair in likeness if likeness[pair] == max(likeness.values())]
    verdicts = [holds(scene.relation, *pair) for pair in likeliest]
    return any(verdicts) if first == second else bool(verdicts) and all(verdicts)


def _alike(thing: Thing, seen: ObservedThing) -> int:
    """How many of the three attributes agree."""
    return sum(getattr(thing, name) == getattr(seen, name) for name in ("shape", "colour", "size"))


def holds(relation: str | None, first: ObservedThing, second: ObservedThing) -> bool:
    """Whether the relation holds between the two; the axis with the greater distance decides."""
    x, y = (a - b for a, b in zip(first.centre, second.centre, strict=True))
    if abs(x) > abs(y):
        return relation == ("to the left of" if x < 0 else "to the right of")
    return relation == ("above" if y < 0 else "below")

"""Drawn scenes with a hole where one thing was, to measure how well a model puts it back as the caption says.

The thing under the hole is not the one of the caption, so that nothing of what the hole covers helps the model.
"""

from dataclasses import dataclass, replace
from math import ceil, floor

import numpy as np
from PIL import Image

from ldm.demos.shapes import COLOURS, SHAPES, Scene, held_out_scene, training_scene
from ldm.demos.shapes_drawing import Box, draw_at, place
from ldm.demos.shapes_judge import agrees, judge
from ldm.noise import choice

RIM_PX = 1
"""How far the hole reaches beyond the thing's box."""


@dataclass(frozen=True)
class Hole:
    """A scene, of which one thing is to be made anew.

    Attributes:
        scene: as captioned.
        covered: the same scene with another shape and another colour in the place of the thing.
        boxes: of the things of both.
        number: which thing it is.
    """

    scene: Scene
    covered: Scene
    boxes: tuple[Box, ...]
    number: int

    def draw(self, size_px: int) -> tuple[Image.Image, Image.Image, Image.Image]:
        """The image given, its mask (white where it is made anew), and the scene as captioned; size_px square."""
        given, wanted = (draw_at(scene, self.boxes, size_px) for scene in (self.covered, self.scene))
        mask = Image.new("L", (size_px, size_px), 0)
        box = self.boxes[self.number]
        left, top = (max(floor(at * size_px) - RIM_PX, 0) for at in (box.left, box.top))
        right, bottom = (min(ceil(at * size_px) + RIM_PX, size_px) for at in (box.right, box.bottom))
        mask.paste(255, (left, top, right, bottom))
        return given, mask, wanted


def hole_for(seed: int, index: int, *, held_out: bool) -> Hole:
    """Hole `index` of the endless set `seed`, in a scene of one or two large things on white."""
    scene = (held_out_scene if held_out else training_scene)(seed, index, plain=True)
    key = ("shapes hole", seed, index, int(held_out))
    number = choice(len(scene.things), *key, "number")
    thing = scene.things[number]
    shapes = [name for name in SHAPES if name != thing.shape]
    colours = [name for name in COLOURS if name not in {each.colour for each in scene.things}]
    other = replace(
        thing,
        shape=shapes[choice(len(shapes), *key, "shape")],
        colour=colours[choice(len(colours), *key, "colour")],
    )
    things = tuple(other if i == number else each for i, each in enumerate(scene.things))
    return Hole(scene, replace(scene, things=things), tuple(place(scene, *key)), number)


def agrees_with_hole(hole: Hole, given: Image.Image, mask: Image.Image, made: Image.Image) -> dict[str, bool]:
    """The verdicts on an image made from `given` by the scene's caption.

    restored: the judge sees the scene as captioned, every attribute of every thing.
    untouched: not one pixel outside the mask differs from `given`, not by one level.
    all: both.
    """
    outside = np.asarray(mask.convert("L")) == 0
    before, after = (np.asarray(image.convert("RGB"))[outside] for image in (given, made))
    verdict = {
        "restored": all(agrees(hole.scene, judge(made)).values()),
        "untouched": bool((before == after).all()),
    }
    return verdict | {"all": all(verdict.values())}

"""Draw composed emoji scenes.

One object fills the image. Several are drawn at half the side, in cells of a grid of quarters: two beside each other
in the middle rows, two above each other in the middle columns, three as one above two, and four in the corners.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ldm.demos.emoji_colours import recolour
from ldm.demos.emoji_objects import EmojiObject, read_cutouts, read_objects
from ldm.demos.emoji_scenes import BACKGROUNDS, Scene, Thing

Cell = tuple[int, int]
"""Column and row of a cell's top left corner, in quarters of the side; a cell is two quarters wide and high."""

SIDE_BY_SIDE: tuple[Cell, ...] = ((0, 1), (2, 1))
ONE_ABOVE_ANOTHER: tuple[Cell, ...] = ((1, 0), (1, 2))
COUNTED: dict[int, tuple[Cell, ...]] = {
    2: SIDE_BY_SIDE,
    3: ((1, 0), (0, 2), (2, 2)),
    4: ((0, 0), (2, 0), (0, 2), (2, 2)),
}


def cells_of(scene: Scene) -> tuple[Cell, ...]:
    """Where the things of a scene with several are, in their order."""
    if scene.layout == "above":
        return ONE_ABOVE_ANOTHER
    return COUNTED[len(scene.things)]


class Artwork:
    """Draws objects and scenes, and keeps what it has drawn of the objects.

    Attributes:
        objects: noun -> object.
        size_px: side of a scene; a multiple of 4.
    """

    def __init__(
        self, objects: Sequence[EmojiObject], cutouts: Mapping[str, NDArray[np.uint8]], size_px: int
    ) -> None:
        self.objects = {one.noun: one for one in objects}
        self.size_px = size_px
        self._cutouts = dict(cutouts)
        self._kept: dict[tuple[Thing, int], Image.Image] = {}

    @classmethod
    def read(cls, folder: Path, size_px: int) -> "Artwork":
        """The artwork of a folder of objects.

        Raises:
            UserError: a file is missing or damaged.
        """
        objects = read_objects(folder)
        return cls(objects, read_cutouts(folder, objects), size_px)

    def draw(self, scene: Scene) -> Image.Image:
        """The scene, RGB."""
        if len(scene.things) == 1:
            return self.draw_thing(scene.things[0], self.size_px, scene.background)
        canvas = Image.new("RGB", (self.size_px, self.size_px), "white")
        quarter = self.size_px // 4
        for thing, (column, row) in zip(scene.things, cells_of(scene), strict=True):
            canvas.paste(self.draw_thing(thing, 2 * quarter), (column * quarter, row * quarter))
        return canvas

    def draw_thing(self, thing: Thing, size_px: int, background: str | None = None) -> Image.Image:
        """One object on a background, `size_px` square, RGB.

        Compositing comes before scaling, as in `ldm.demos.emoji.draw_on_white`.
        """
        if background is not None:
            return self._on(thing, size_px, BACKGROUNDS[background])
        if (thing, size_px) not in self._kept:
            self._kept[thing, size_px] = self._on(thing, size_px, (255, 255, 255))
        return self._kept[thing, size_px]

    def _on(self, thing: Thing, size_px: int, background: tuple[int, int, int]) -> Image.Image:
        rgba = Image.fromarray(self._cutout(thing))
        flat = Image.new("RGBA", rgba.size, background)
        flat.alpha_composite(rgba)
        return flat.convert("RGB").resize((size_px, size_px), Image.Resampling.LANCZOS)

    def _cutout(self, thing: Thing) -> NDArray[np.uint8]:
        pixels = self._cutouts[thing.noun]
        main = self.objects[thing.noun].main
        if thing.colour is None:
            return pixels
        if main is None:
            raise ValueError(f"{thing.noun} has no colour to change")
        return recolour(pixels, main, thing.colour)

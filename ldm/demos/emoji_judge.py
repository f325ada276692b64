"""Say what an image of composed emoji shows: the scene whose drawing is nearest to it.

Distances are squared differences of pixels after halving the image with a box filter, so that an image's own cell
(`ldm.demos.emoji_scenes_drawing`) decides about an object, and fine texture does not. Candidates are all scenes of a
kind, held out or not: every object in every colour, on every background, in every number, and in every pair.
"""

from collections.abc import Sequence
from functools import cached_property
from itertools import product

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from ldm.demos.emoji_colours import COLOURS
from ldm.demos.emoji_scenes import BACKGROUNDS, LAYOUTS, NUMBERS, Kind, Scene, Thing
from ldm.demos.emoji_scenes_drawing import Artwork, cells_of

ATTRIBUTES = ("object", "colour", "background", "number", "layout")


class SceneJudge:
    """Judges images of the artwork's size."""

    def __init__(self, artwork: Artwork) -> None:
        self.artwork = artwork
        self._candidates: dict[Kind, tuple[list[Scene], Tensor]] = {}

    def judge(self, images: Sequence[Image.Image], kind: Kind) -> list[Scene]:
        """The nearest scene of a kind for each image."""
        pixels = halved(images)
        if kind == "pair":
            return [self._nearest_pair(each) for each in pixels]
        if kind not in self._candidates:
            scenes = self._scenes_of(kind)
            self._candidates[kind] = scenes, halved([self.artwork.draw(scene) for scene in scenes])
        scenes, drawings = self._candidates[kind]
        nearest = torch.cdist(pixels.flatten(1), drawings.flatten(1)).argmin(dim=1)
        return [scenes[int(index)] for index in nearest]

    @cached_property
    def _things(self) -> list[Thing]:
        """Every object in every colour that it can have, or as it is if it can have none."""
        return [
            Thing(one.noun, colour)
            for one in self.artwork.objects.values()
            for colour in (COLOURS if one.takes_colours else (None,))
        ]

    @cached_property
    def _plain(self) -> list[Thing]:
        return [Thing(noun) for noun in self.artwork.objects]

    def _scenes_of(self, kind: Kind) -> list[Scene]:
        if kind == "colour":
            return [Scene((thing,)) for thing in self._things]
        if kind == "background":
            return [
                Scene((thing,), background=name) for thing in self._plain for name in (None, *BACKGROUNDS)
            ]
        coloured = [thing for thing in self._things if thing.colour]
        return [
            Scene((thing,) * number)
            for thing in (*self._plain, *coloured)
            for number in (1, *NUMBERS.values())
        ]

    @cached_property
    def _small(self) -> Tensor:
        """[N, 3, s, s]: each object as in a cell."""
        side = self.artwork.size_px // 2
        return halved([self.artwork.draw_thing(thing, side) for thing in self._plain])

    def _nearest_pair(self, image: Tensor) -> Scene:
        """The nearest of all pairs. A pair's distance is a sum over its two cells and the white rest."""
        best: tuple[float, Scene] | None = None
        for layout in LAYOUTS:
            example = Scene((self._plain[0], self._plain[1]), layout)
            rest, distances = (1 - image).square(), []
            for column, row in cells_of(example):
                cell = _cell(image, column, row)
                distances.append((self._small - cell).square().flatten(1).sum(dim=1))
                _cell(rest, column, row).zero_()
            first, second = _best_different(*distances)
            total = float(distances[0][first] + distances[1][second] + rest.sum())
            scene = Scene((self._plain[first], self._plain[second]), layout)
            if best is None or total < best[0]:
                best = total, scene
        assert best is not None, "there are two layouts"
        return best[1]


def _best_different(first: Tensor, second: Tensor) -> tuple[int, int]:
    """The indices i != j with the smallest first[i] + second[j]."""
    nearest = (first.argsort()[:2].tolist(), second.argsort()[:2].tolist())
    pairs = [(i, j) for i, j in product(*nearest) if i != j]
    return min(pairs, key=lambda pair: float(first[pair[0]] + second[pair[1]]))


def _cell(image: Tensor, column: int, row: int) -> Tensor:
    """A view of one cell of [3, S, S]."""
    quarter = image.shape[-1] // 4
    top, left = row * quarter, column * quarter
    return image[:, top : top + 2 * quarter, left : left + 2 * quarter]


def halved(images: Sequence[Image.Image]) -> Tensor:
    """[N, 3, S/2, S/2] in [0, 1]: the mean of each 2 x 2 pixels."""
    pixels = torch.stack([torch.from_numpy(np.array(image.convert("RGB"))) for image in images])
    return functional.avg_pool2d(pixels.permute(0, 3, 1, 2).float() / 255, 2)


def agrees(scene: Scene, seen: Scene, *, names_places: bool = True) -> dict[str, bool]:
    """For each attribute that a scene has, whether the judged scene has the same.

    Args:
        names_places: whether the caption says where the two objects of a pair are. If it does not ("a dog and a
            rocket"), the layout is not judged. The objects of a pair are right if both are there, in any order.
    """
    nouns = [sorted({thing.noun for thing in each.things}) for each in (scene, seen)]
    right = {"object": nouns[0] == nouns[1]}
    if scene.things[0].colour is not None:
        right["colour"] = scene.things[0].colour == seen.things[0].colour
    if scene.kind == "background":
        right["background"] = scene.background == seen.background
    if scene.kind == "count":
        right["number"] = len(scene.things) == len(seen.things)
    if scene.kind == "pair" and names_places:
        right["layout"] = scene.layout == seen.layout and (
            not right["object"] or scene.things[0].noun == seen.things[0].noun
        )
    return right

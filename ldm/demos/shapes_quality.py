"""Drawn scenes to restore, to enlarge or to draw where silhouettes say, each with the image that is right.

What needs no network is here as well: what simpler methods make of the same images, and how near an image is to the
right one (PSNR and SSIM), or its things to the silhouettes (F1).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from PIL import Image, ImageFilter

from ldm.data.degradations import DEGRADATIONS, DegradationSettings, degrade
from ldm.demos.shapes import Scene, held_out_scene, training_scene
from ldm.demos.shapes_drawing import draw
from ldm.demos.shapes_hints import silhouettes
from ldm.demos.shapes_regions import ink_of, read_pixels, rim_colour
from ldm.demos.shapes_score import SCORING_SEED
from ldm.evaluation.metrics import psnr, ssim
from ldm.evaluation.perceptual import Lpips
from ldm.io.images import image_to_tensor, resize_and_crop, tensor_to_images

MEASURED_TASKS = ("control", "restore", "upscale")
STRENGTHS = (0.25, 0.5, 0.75, 1.0)
"""How damaged the images to restore are; the model is told."""
MIXED = "as in training"
MEDIAN_PX = 3

Images = Sequence[Image.Image]
Values = Mapping[str, Sequence[float]]


@dataclass(frozen=True)
class Case:
    """One image to make.

    Attributes:
        kind: what its quality is listed under, besides "all".
        prompt: the caption of what it shows.
        given: the damaged, the small or the control image.
        wanted: the image that is right in every pixel.
        strength: how damaged the image given is.
        scene: what it shows, if that is a drawn scene.
    """

    kind: str
    prompt: str
    given: Image.Image
    wanted: Image.Image
    strength: float = 0.0
    scene: Scene | None = None


def cases_for(task: str, part: str, num_cases: int, size_px: int, factor: int = 4) -> list[Case]:
    """The first cases of "held_out" or "seen" combinations; pure functions of the arguments and a number.

    Args:
        factor: how many times smaller the image to enlarge is.
    """
    scene_of = held_out_scene if part == "held_out" else training_scene
    case_for: dict[str, Callable[[Scene, int, int, str], Case]] = {
        "restore": _damaged_case,
        "upscale": partial(_small_case, factor=factor),
        "control": _control_case,
    }
    scenes = [scene_of(SCORING_SEED, index, plain=True) for index in range(num_cases)]
    return [case_for[task](scene, size_px, index, part) for index, scene in enumerate(scenes)]


def _damaged_case(scene: Scene, size_px: int, index: int, part: str) -> Case:
    """One of every kind of damage in turn, and then several at once as in training; each strength as often."""
    kinds = [*DEGRADATIONS, MIXED]
    kind, strength = kinds[index % len(kinds)], STRENGTHS[index // len(kinds) % len(STRENGTHS)]
    others = {name: 0 for name in DEGRADATIONS if kind not in (name, MIXED)}
    wanted = draw(scene, size_px, "shapes restore", part, index)
    key = ("shapes restore", part, index)
    damaged = degrade(image_to_tensor(wanted), strength, key, DegradationSettings.model_validate(others))
    return Case(kind, scene.caption, tensor_to_images(damaged[None])[0], wanted, strength, scene)


def _small_case(scene: Scene, size_px: int, index: int, part: str, *, factor: int) -> Case:
    """Reduced as in training."""
    wanted = draw(scene, size_px, "shapes upscale", part, index)
    small = resize_and_crop(wanted, size_px // factor, size_px // factor)
    return Case(_number_of_things(scene), scene.caption, small, wanted, scene=scene)


def _control_case(scene: Scene, size_px: int, index: int, part: str) -> Case:
    key = ("shapes control", part, index)
    hint, wanted = silhouettes(scene, size_px, *key), draw(scene, size_px, *key)
    return Case(_number_of_things(scene), scene.caption, hint, wanted, scene=scene)


def _number_of_things(scene: Scene) -> str:
    return "one thing" if len(scene.things) == 1 else "two things"


# What simpler methods make of the images given


def enlarged(cases: Sequence[Case]) -> list[Image.Image]:
    """Each image given, enlarged bicubically."""
    return [case.given.resize(case.wanted.size, Image.Resampling.BICUBIC) for case in cases]


def median_filtered(cases: Sequence[Case]) -> list[Image.Image]:
    """Each image given after a median filter of 3 x 3 pixels."""
    return [case.given.filter(ImageFilter.MedianFilter(MEDIAN_PX)) for case in cases]


# How near an image is


def likeness(cases: Sequence[Case], images: Images) -> Values:
    """PSNR in dB and SSIM of each image against the one wanted."""
    made = torch.stack([image_to_tensor(image) for image in images])
    wanted = torch.stack([image_to_tensor(case.wanted) for case in cases])
    return {"psnr": psnr(made, wanted).tolist(), "ssim": ssim(made, wanted).tolist()}


def look(lpips: Lpips, cases: Sequence[Case], images: Images) -> Values:
    """LPIPS of each image against the one wanted; lower is better."""
    made, wanted = (
        torch.stack([image_to_tensor(image) for image in some])
        for some in (images, [case.wanted for case in cases])
    )
    return {"lpips": lpips(made, wanted).tolist()}


def layout(cases: Sequence[Case], images: Images) -> Values:
    """F1 of each image's ink against the silhouettes of its case, pixel by pixel."""
    return {"f1": [layout_f1(image, case.given) for case, image in zip(cases, images, strict=True)]}


def layout_f1(image: Image.Image, hint: Image.Image) -> float:
    """2 |A and B| / (|A| + |B|), of the pixels with ink and the white ones of the hint; 1 if there are none."""
    pixels = read_pixels(image)
    ink = ink_of(pixels, rim_colour(pixels)) > 0.5
    white = np.asarray(hint.convert("L")) > 127
    total = int(ink.sum() + white.sum())
    return 2 * int((ink & white).sum()) / total if total else 1.0


MEASURES: Mapping[str, Callable[[Sequence[Case], Images], Values]] = {
    "control": layout,
    "restore": likeness,
    "upscale": likeness,
}
"""By task: the values of each image, by the name of the measure."""

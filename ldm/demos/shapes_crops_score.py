"""Whether a model does what it is told of size and crop: shares of images with exact intervals.

Two models have seen the same crops. One was told the size of each image and where it was cut, the other nothing. The
judge reads each image: which of its sides the ink touches, and how soft the edges are (`ldm.demos.shapes_crops`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from PIL import Image

from ldm.demos.shapes_crops import SIZE_PX, Size, all_scenes, cut_sides, edge_width_px
from ldm.demos.shapes_judge import agrees, judge
from ldm.demos.shapes_score import SCORING_SEED
from ldm.evaluation.metrics import exact_interval
from ldm.io.files import write_json
from ldm.io.folders import new_folder
from ldm.io.images import image_grid
from ldm.pipeline.pipeline import Pipeline

BATCH = 40
WIDE, TALL, SQUARE = (SIZE_PX, 2 * SIZE_PX), (2 * SIZE_PX, SIZE_PX), (SIZE_PX, SIZE_PX)
SMALL, LARGE = (SIZE_PX // 2, SIZE_PX // 2), (2 * SIZE_PX, 2 * SIZE_PX)


@dataclass(frozen=True)
class Request:
    """What a model is asked for besides the prompt, and the sides that must then be cut off: none for a whole shape."""

    original_size: Size
    crop: Size
    cut: frozenset[str] = field(default_factory=frozenset)


END, MIDDLE = SIZE_PX, SIZE_PX // 2
REQUESTS = {
    "square": Request(SQUARE, (0, 0)),
    "wide, left end": Request(WIDE, (0, 0), frozenset({"right"})),
    "wide, middle": Request(WIDE, (0, MIDDLE)),
    "wide, right end": Request(WIDE, (0, END), frozenset({"left"})),
    "tall, upper end": Request(TALL, (0, 0), frozenset({"bottom"})),
    "tall, middle": Request(TALL, (MIDDLE, 0)),
    "tall, lower end": Request(TALL, (END, 0), frozenset({"top"})),
}
"""The shape is in the middle of the whole image, so each end of a long one cuts it off on one side."""


def score_crops(
    told: Pipeline,
    untold: Pipeline,
    dest: Path,
    *,
    num_seeds: int = 5,
    settings: Mapping[str, Any] = MappingProxyType({}),
    on_progress: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Write `report.json` and a grid of each request into `dest`, a new folder; returns the report.

    Args:
        told: the model that was told sizes and crops.
        untold: the model that has seen the same crops and was told nothing.
        num_seeds: how many images of each of the 40 prompts are made for each request.
        settings: further arguments of `Pipeline.generate`.

    Raises:
        UserError: `dest` exists, or the disk is full.
    """
    report: dict[str, Any] = {"told": {}, "untold": {}, "num_seeds": num_seeds, "settings": dict(settings)}
    with new_folder(dest, manifest=False) as folder:

        def make(pipeline: Pipeline, name: str, request: Request) -> list[Image.Image]:
            on_progress(name)
            images = images_of(pipeline, request, num_seeds, settings)
            image_grid(images[: 2 * BATCH], num_columns=20).save(folder / f"{name}.png")
            return images

        for name, request in REQUESTS.items():
            report["told"][name] = judged(make(told, f"told, {name}", request), request)
        report["untold"]["square"] = judged(make(untold, "untold", REQUESTS["square"]), REQUESTS["square"])
        small = make(told, "told, small", Request(SMALL, (0, 0)))
        large = make(told, "told, large", Request(LARGE, (0, 0)))
        report["sizes"] = softness(small, large)
        write_json(folder / "report.json", report)
    return report


def images_of(
    pipeline: Pipeline, request: Request, num_seeds: int, settings: Mapping[str, Any] = MappingProxyType({})
) -> list[Image.Image]:
    """Images of all prompts, `num_seeds` times in turn. Image i has the same noise for each request."""
    prompts = [scene.caption for scene in all_scenes()] * num_seeds
    images = []
    for start in range(0, len(prompts), BATCH):
        images += pipeline.generate(
            prompts[start : start + BATCH],
            seed=SCORING_SEED + start,
            batch_size=BATCH,
            progress=False,
            original_size=request.original_size,
            crop=request.crop,
            **settings,
        ).images
    return images


def judged(images: Sequence[Image.Image], request: Request) -> dict[str, Any]:
    """The shares of images as asked for, of whole ones, and of those whose shape and colour are also the prompt's."""
    sides = [cut_sides(image) for image in images]
    scenes = all_scenes() * (len(images) // len(all_scenes()))
    found = {
        "as_asked": [each == request.cut for each in sides],
        "whole": [each == frozenset() for each in sides],
    }
    if not request.cut:  # a shape that is cut off is none that the judge knows
        verdicts = [agrees(scene, judge(image)) for scene, image in zip(scenes, images, strict=True)]
        found["right"] = [
            whole and each["shape"] and each["colour"]
            for whole, each in zip(found["whole"], verdicts, strict=True)
        ]
    return {name: share_of(right) for name, right in found.items()}


def softness(small: Sequence[Image.Image], large: Sequence[Image.Image]) -> dict[str, Any]:
    """Mean width of edges in pixels, and how often the image of a small original is softer than that of a large one."""
    widths = {
        name: [edge_width_px(image) for image in some] for name, some in (("small", small), ("large", large))
    }
    softer = [one > two for one, two in zip(widths["small"], widths["large"], strict=True)]
    means = {f"{name}_edge_width_px": sum(each) / len(each) for name, each in widths.items()}
    return {**means, "softer": share_of(softer)}


def share_of(right: Sequence[bool]) -> dict[str, float]:
    """share, low and high (exact, 95 %), num_right and num_judged, for JSON."""
    low, high = exact_interval(sum(right), len(right))
    counts = {"num_right": sum(right), "num_judged": len(right)}
    return {"share": sum(right) / len(right), "low": low, "high": high, **counts}

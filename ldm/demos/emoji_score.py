"""Evaluate the embedded model: recall of its training images, and two grids of images to look at."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ldm.data.sample import Sample
from ldm.evaluation.recall import measure_recall
from ldm.io.files import write_json
from ldm.io.folders import new_folder
from ldm.io.images import image_grid
from ldm.pipeline.pipeline import Pipeline

NUM_SHOWN = 48


def evaluate_emoji(
    pipeline: Pipeline,
    samples: Sequence[Sample],
    unseen: Sequence[str],
    dest: Path,
    *,
    num_captions: int = 256,
    settings: Mapping[str, Any] = MappingProxyType({}),
    on_progress: Callable[[int], None] = lambda _: None,
) -> dict[str, Any]:
    """Write `report.json`, `seen.png` and `unseen.png` into `dest`, a new folder; returns the report.

    Args:
        samples: the training images with their captions.
        unseen: prompts that do not occur among the training captions.
        num_captions: number of training captions to measure recall on, always the same ones.
        settings: further arguments of `Pipeline.generate`, for all images.

    Raises:
        UserError: `dest` exists, or the disk is full.
    """
    with new_folder(dest, manifest=False) as folder:
        result, _ = measure_recall(
            pipeline, samples, num_captions=num_captions, settings=settings, on_progress=on_progress
        )
        report = {
            "recall": {"num_training_images": len(samples), **result.to_dict()},
            "weights_hash": pipeline.weights_hash,
            "model_parts": pipeline.identity.image_parts if pipeline.identity else None,
            "settings": dict(settings),
        }
        write_json(folder / "report.json", report)
        # every 11th training caption, so that all groups of emoji are represented
        seen = [sample.text for sample in samples[:: max(1, len(samples) // NUM_SHOWN)]][:NUM_SHOWN]
        for name, prompts in (("seen", seen), ("unseen", list(unseen)[:NUM_SHOWN])):
            draw_grid(pipeline, prompts, settings=settings).save(folder / f"{name}.png")
    return report


def draw_grid(
    pipeline: Pipeline,
    prompts: Sequence[str],
    *,
    seed: int = 0,
    num_columns: int = 8,
    settings: Mapping[str, Any] = MappingProxyType({}),
) -> Any:
    """One image per prompt, all with the same seed and `settings`, each with its prompt below."""
    images = [
        image
        for prompt in prompts
        for image in pipeline.generate(prompt, seed=seed, progress=False, **settings).images
    ]
    shown = [image.resize((2 * image.width, 2 * image.height)) for image in images]
    return image_grid(shown, num_columns=num_columns, captions=list(prompts))

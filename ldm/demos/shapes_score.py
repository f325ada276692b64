"""Prompt following of a model trained on drawn scenes: seen combinations, and those held out of training."""

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ldm.demos.prompt_following import PromptFollowing, score_prompts
from ldm.demos.shapes import held_out_scene, training_scene
from ldm.io.files import new_folder, write_json
from ldm.io.images import image_grid
from ldm.pipeline.pipeline import Pipeline

SCORING_SEED = 1_000_003
"""Scenes are drawn from this seed, which no training set uses."""


def score_shapes(
    pipeline: Pipeline,
    dest: Path,
    *,
    num_scenes: int,
    plain: bool = False,
    settings: Mapping[str, Any] = MappingProxyType({}),
    on_progress: Callable[[int], None] = lambda _: None,
) -> dict[str, Any]:
    """Write `report.json` and a grid for each of the two kinds of scenes into `dest`, a new folder.

    Args:
        plain: only scenes with one or two large things on white.
        settings: further arguments of `Pipeline.generate`.

    Returns:
        By kind, `seen` and `held_out`: the share right of each attribute with its 95 % interval.

    Raises:
        UserError: `dest` exists, or the disk is full.
    """
    report: dict[str, Any] = {
        "weights_hash": pipeline.weights_hash,
        "plain": plain,
        "settings": dict(settings),
    }
    with new_folder(dest) as folder:
        for kind, scene_of in (("seen", training_scene), ("held_out", held_out_scene)):
            prompts = [scene_of(SCORING_SEED, index, plain=plain).caption for index in range(num_scenes)]
            images = []
            for start in range(0, num_scenes, 50):
                part = prompts[start : start + 50]
                images += pipeline.generate(part, seed=start, batch_size=50, **settings).images
                on_progress(len(images))
            score: PromptFollowing = score_prompts(prompts, images)
            report[kind] = score.to_dict()
            shown = [image.resize((128, 128)) for image in images[:32]]
            image_grid(shown, num_columns=8, captions=prompts[:32]).save(folder / f"{kind}.png")
        write_json(folder / "report.json", report)
    return report

"""How well a model of drawn scenes follows prompts: the share of images with each attribute right, with intervals.

The prompt is its own ground truth and the judge reads the image, so no pretrained network is needed. Scores are given
for combinations seen in training and for those held out.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from PIL import Image

from ldm.demos.shapes import Scene, held_out_scene, parse_caption, training_scene
from ldm.demos.shapes_judge import ATTRIBUTES, agrees, judge
from ldm.evaluation.metrics import Share
from ldm.io.files import write_json
from ldm.io.folders import new_folder
from ldm.io.images import image_grid
from ldm.pipeline.pipeline import Pipeline

SCORING_SEED = 1_000_003
"""The scenes for scoring have this seed, which no training set uses."""


@dataclass(frozen=True)
class PromptFollowing:
    """The shares by attribute, and under "all" the share of images with every attribute right.

    An attribute that no prompt has is left out (such as the relation, if every prompt names one thing).
    """

    shares: dict[str, Share]

    def to_dict(self) -> dict[str, dict[str, float]]:
        """By attribute: share, low and high (the 95 % Wilson interval), num_right, num_judged; for JSON."""
        return {name: share.to_dict() for name, share in self.shares.items()}

    def __str__(self) -> str:
        return "; ".join(f"{name} {share}" for name, share in self.shares.items())


def score_prompts(prompts: Sequence[str | Scene], images: Sequence[Image.Image]) -> PromptFollowing:
    """Judge image i by prompt i, which is a caption of `ldm.demos.shapes` or a scene.

    Raises:
        ValueError: there are no prompts, or the number of images differs from the number of prompts.
        UserError: a prompt is not a caption of a drawn scene.
    """
    if not prompts:
        raise ValueError("no prompts to score")
    scenes = [prompt if isinstance(prompt, Scene) else parse_caption(prompt) for prompt in prompts]
    verdicts = [agrees(scene, judge(image)) for scene, image in zip(scenes, images, strict=True)]
    for verdict in verdicts:
        verdict["all"] = all(verdict.values())
    judged = {name: [v[name] for v in verdicts if name in v] for name in (*ATTRIBUTES, "all")}
    return PromptFollowing({name: Share(sum(right), len(right)) for name, right in judged.items() if right})


def score_shapes(
    pipeline: Pipeline,
    dest: Path,
    *,
    num_scenes: int,
    plain: bool = False,
    settings: Mapping[str, Any] = MappingProxyType({}),
    on_progress: Callable[[int], None] = lambda _: None,
) -> dict[str, Any]:
    """Write `report.json` and a grid for each kind of scene into `dest`, a new folder.

    Args:
        plain: only scenes with one or two large things on white.
        settings: further arguments of `Pipeline.generate`.

    Returns:
        For each kind, `seen` and `held_out`: the share of images with each attribute right, with its 95 % interval.

    Raises:
        UserError: `dest` exists, or the disk is full.
    """
    report: dict[str, Any] = {
        "weights_hash": pipeline.weights_hash,
        "model_parts": pipeline.identity.image_parts if pipeline.identity else None,
        "plain": plain,
        "settings": dict(settings),
    }
    with new_folder(dest, manifest=False) as folder:
        for kind, scene_of in (("seen", training_scene), ("held_out", held_out_scene)):
            prompts = [scene_of(SCORING_SEED, index, plain=plain).caption for index in range(num_scenes)]
            images = []
            for start in range(0, num_scenes, 50):
                part = prompts[start : start + 50]
                images += pipeline.generate(
                    part, seed=start, batch_size=50, progress=False, **settings
                ).images
                on_progress(len(images))
            score: PromptFollowing = score_prompts(prompts, images)
            report[kind] = score.to_dict()
            shown = [image.resize((128, 128)) for image in images[:32]]
            image_grid(shown, num_columns=8, captions=prompts[:32]).save(folder / f"{kind}.png")
        write_json(folder / "report.json", report)
    return report

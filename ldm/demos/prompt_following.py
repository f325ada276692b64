"""How well pictures follow prompts, on drawn scenes: the share right of each attribute, and its interval.

The judge reads the picture and the prompt is its own ground truth, so no pretrained network is needed.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from ldm.demos.shapes import Scene, parse_caption
from ldm.demos.shapes_judge import ATTRIBUTES, agrees, judge
from ldm.evaluation.share import Share


@dataclass(frozen=True)
class PromptFollowing:
    """The shares by attribute, and under "all" the share of pictures with every attribute right.

    An attribute that no prompt has (a relation, where every prompt names one thing) is left out.
    """

    shares: dict[str, Share]

    def to_dict(self) -> dict[str, dict[str, float]]:
        """By attribute: share, low and high (the 95 % Wilson interval), num_right, num_judged; for JSON."""
        return {name: share.to_dict() for name, share in self.shares.items()}

    def __str__(self) -> str:
        return "; ".join(f"{name} {share}" for name, share in self.shares.items())


def score_prompts(prompts: Sequence[str | Scene], images: Sequence[Image.Image]) -> PromptFollowing:
    """Judge image i against prompt i, a caption of `ldm.demos.shapes` or a scene.

    Raises:
        ValueError: there are no prompts, or not as many images as prompts.
        UserError: a prompt is no caption of a drawn scene.
    """
    if not prompts:
        raise ValueError("no prompts to score")
    scenes = [prompt if isinstance(prompt, Scene) else parse_caption(prompt) for prompt in prompts]
    verdicts = [agrees(scene, judge(image)) for scene, image in zip(scenes, images, strict=True)]
    for verdict in verdicts:
        verdict["all"] = all(verdict.values())
    judged = {name: [v[name] for v in verdicts if name in v] for name in (*ATTRIBUTES, "all")}
    return PromptFollowing({name: Share(sum(right), len(right)) for name, right in judged.items() if right})

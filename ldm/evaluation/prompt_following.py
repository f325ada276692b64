"""How well pictures follow prompts, on drawn scenes: the share right of each attribute, and its interval.

The judge reads the picture and the prompt is its own ground truth, so no pretrained network is needed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

from PIL import Image

from ldm.demos.shapes import Scene, parse_caption
from ldm.demos.shapes_judge import ATTRIBUTES, agrees, judge


def wilson_interval(num_right: int, num_judged: int, confidence: float = 0.95) -> tuple[float, float]:
    """The score interval of a share p = num_right / n, which stays in [0, 1] and holds at p = 0 and 1 too.

    (p + z^2/2n -+ z sqrt(p (1 - p)/n + z^2/4n^2)) / (1 + z^2/n), with z the normal quantile: E. B. Wilson,
    "Probable inference, the law of succession, and statistical inference", J. Am. Stat. Assoc. 22 (1927) 209.

    Raises:
        ValueError: num_judged is below 1, or num_right is not between 0 and num_judged.
    """
    if not 0 <= num_right <= num_judged or num_judged < 1:
        raise ValueError(f"{num_right} right of {num_judged} judged is no share")
    n, p = num_judged, num_right / num_judged
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    middle = p + z * z / (2 * n)
    spread = z * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5
    scale = 1 + z * z / n
    return max(0.0, (middle - spread) / scale), min(1.0, (middle + spread) / scale)


@dataclass(frozen=True)
class Share:
    """How many pictures, of those judged on it, have an attribute right."""

    num_right: int
    num_judged: int

    @property
    def share(self) -> float:
        return self.num_right / self.num_judged

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % Wilson interval of the share."""
        return wilson_interval(self.num_right, self.num_judged)

    def to_dict(self) -> dict[str, float]:
        """share, low and high (the interval), num_right, num_judged; for JSON."""
        low, high = self.interval
        counts = {"num_right": self.num_right, "num_judged": self.num_judged}
        return {"share": self.share, "low": low, "high": high, **counts}

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.share:.3f} [{low:.3f}, {high:.3f}] of {self.num_judged}"


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

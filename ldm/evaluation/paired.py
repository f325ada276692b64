"""Compare two measurements of the same images' prompts and seeds: what both have in common cancels."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ldm.evaluation.intervals import CONFIDENCE, LEAST_SAMPLES, Estimate, t_quantile


@dataclass(frozen=True)
class Scores:
    """A measurement of one model with what each image contributes to it.

    For a mean, such as the CLIP score, a contribution is the image's own score. For a distance between distributions it
    is the value plus the image's influence on it: the mean over the images is the value, to first order.

    Attributes:
        value: the measurement.
        per_image: [N] contributions in float64; image i has the same prompt and noise in every measurement.
        per_reference: [M] contributions of the reference images, with mean 0, or None.
        more_variance: the variance of `value` that these contributions do not explain.
    """

    value: float
    per_image: Tensor
    per_reference: Tensor | None = None
    more_variance: float = 0.0

    @classmethod
    def of_mean(cls, per_image: Tensor) -> "Scores":
        """The scores of a measurement that is a mean over images."""
        return cls(float(per_image.double().mean()), per_image.double())

    def numbers(self) -> dict[str, Any]:
        """As plain numbers, for a checkpoint; exact to the last bit."""
        reference = None if self.per_reference is None else self.per_reference.tolist()
        return {
            "value": self.value,
            "per_image": self.per_image.tolist(),
            "per_reference": reference,
            "more_variance": self.more_variance,
        }

    @classmethod
    def from_numbers(cls, numbers: Mapping[str, Any]) -> "Scores":
        """The inverse of `numbers`."""
        reference = numbers["per_reference"]
        return cls(
            numbers["value"],
            torch.tensor(numbers["per_image"], dtype=torch.float64),
            None if reference is None else torch.tensor(reference, dtype=torch.float64),
            numbers["more_variance"],
        )


@dataclass(frozen=True)
class Difference:
    """A paired difference, its standard error, and the degrees of freedom of the latter."""

    value: float
    stderr: float
    degrees: int

    def interval(self, confidence: float = CONFIDENCE) -> Estimate:
        """With Student's t interval; NaN limits with fewer than `LEAST_SAMPLES` images."""
        if self.degrees + 1 < LEAST_SAMPLES:
            return Estimate(self.value, float("nan"), float("nan"))
        spread = t_quantile((1 + confidence) / 2, self.degrees) * self.stderr
        return Estimate(self.value, self.value - spread, self.value + spread)


def paired_difference(first: Scores, second: Scores) -> Difference:
    """first - second, with the variance of the differences image by image.

    Raises:
        ValueError: the two are not of the same images.
    """
    if first.per_image.shape != second.per_image.shape:
        raise ValueError(f"{len(first.per_image)} images are not paired with {len(second.per_image)}")
    variance = first.more_variance + second.more_variance
    pairs = [(first.per_image, second.per_image)]
    if first.per_reference is not None and second.per_reference is not None:
        pairs.append((first.per_reference, second.per_reference))
    for one, other in pairs:
        if len(one) > 1:
            variance += float((one - other).var()) / len(one)
    return Difference(first.value - second.value, variance**0.5, len(first.per_image) - 1)

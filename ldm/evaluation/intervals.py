"""Confidence intervals: of a mean, and of a squared distance between two distributions, which can be zero."""

from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import Tensor

CONFIDENCE = 0.95
LEAST_SAMPLES = 10
"""Fewer images give no interval."""


@dataclass(frozen=True)
class Estimate:
    """A number and its 95 % confidence interval; NaN where there is none.

    Attributes:
        value: the estimate itself, which need not be the middle of the interval.
        low, high: the limits.
    """

    value: float
    low: float
    high: float

    def contains(self, truth: float) -> bool:
        return self.low <= truth <= self.high

    def scaled(self, factor: float) -> "Estimate":
        """The same in other units."""
        return Estimate(factor * self.value, factor * self.low, factor * self.high)


def t_quantile(probability: float, degrees: float) -> float:
    """The quantile of Student's t distribution with at least 5 degrees of freedom, to about 1e-3.

    Cornish-Fisher expansion around the normal quantile: Abramowitz and Stegun, Handbook of Mathematical Functions,
    26.7.5.
    """
    x = NormalDist().inv_cdf(probability)
    terms = (
        (x**3 + x) / 4,
        (5 * x**5 + 16 * x**3 + 3 * x) / 96,
        (3 * x**7 + 19 * x**5 + 17 * x**3 - 15 * x) / 384,
    )
    return x + sum(term / degrees**power for power, term in enumerate(terms, 1))


def mean_interval(values: Tensor, confidence: float = CONFIDENCE) -> Estimate:
    """The mean of independent values [N] with Student's t interval (Gosset 1908)."""
    values = values.double()
    mean = float(values.mean())
    if len(values) < LEAST_SAMPLES:
        return Estimate(mean, float("nan"), float("nan"))
    spread = t_quantile((1 + confidence) / 2, len(values) - 1) * float(values.std()) / len(values) ** 0.5
    return Estimate(mean, mean - spread, mean + spread)


@dataclass(frozen=True)
class SquaredDistance:
    """An unbiased estimate of theta = |Delta|^2 from D = Delta + error, and what its variance consists of.

    The variance is 4 c theta + v: the first term vanishes where the distributions are equal, so an interval that uses
    only its estimate is wrong there.

    Attributes:
        value: |D|^2 - trace(C), with C the covariance of the error.
        along: c, the error's variance in the direction of Delta: D'CD / |D|^2.
        null_variance: v, the variance where theta = 0: 2 trace(C^2).
        degrees: of freedom, of the quantile.
    """

    value: float
    along: float
    null_variance: float
    degrees: int

    def interval(self, confidence: float = CONFIDENCE) -> Estimate:
        """All theta with (value - theta)^2 <= t^2 (4 c theta + v), as in Wilson's interval of a proportion.

        The estimate is unbiased, so it and the lower limit can be negative where theta is near 0. An interval that
        contains 0 says that the two sets of images were not told apart.
        """
        if self.degrees + 1 < LEAST_SAMPLES:
            return Estimate(self.value, float("nan"), float("nan"))
        t = t_quantile((1 + confidence) / 2, self.degrees)
        shift = 2 * self.along * t * t
        inside = shift * shift + t * t * (4 * self.along * self.value + self.null_variance)
        spread = max(0.0, inside) ** 0.5
        return Estimate(self.value, self.value + shift - spread, self.value + shift + spread)


def finite(features: Tensor) -> Tensor:
    """The features in float64.

    Raises:
        ValueError: one is NaN or infinite.
    """
    if not torch.isfinite(features).all():
        raise ValueError("a feature is NaN or infinite")
    return features.double()

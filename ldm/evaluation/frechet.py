"""The Frechet distance of two sets of features (FID), extrapolated to infinitely many images, with an interval.

    F = |mean_x - mean_y|^2 + trace(S_x + S_y - 2 (S_x S_y)^(1/2))        Heusel et al. 2017, eq. 6

of N images is too large by about slope / N, even for equal distributions, and by a different amount for each model, so
F itself ranks nothing (Chong and Forsyth, "Effectively Unbiased FID", 2020). Near its minimum F is quadratic in the
errors of means and covariances, so the interval is that of a squared distance.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ldm.evaluation.intervals import Estimate, SquaredDistance, finite
from ldm.evaluation.kernel_distance import error_along
from ldm.noise import permutation

NUM_GROUPS = 20
"""Groups of images that are left out in turn."""
LEFT_OUT = (0, 2, 4, 6, 8)
"""The numbers of groups left out: the sizes of sets that the extrapolation is fitted to."""
NUM_SHUFFLES = 40
"""Divisions of all images at random, which show how F varies between equal distributions."""


@dataclass(frozen=True)
class Moments:
    """Mean [d] and covariance [d, d] of features."""

    mean: Tensor
    covariance: Tensor


def moments(features: Tensor) -> Moments:
    """Of features [N, d], with the unbiased covariance."""
    mean = features.mean(dim=0)
    centred = features - mean
    return Moments(mean, centred.T @ centred / (len(features) - 1))


def square_root(covariance: Tensor) -> Tensor:
    """The symmetric square root of a covariance."""
    values, vectors = torch.linalg.eigh(covariance)
    root: Tensor = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    return root


def frechet_of_moments(first: Moments, second: Moments, root: Tensor | None = None) -> float:
    """The distance of two Gaussians; `root` is the square root of the second covariance, if it is known."""
    root = square_root(second.covariance) if root is None else root
    values = torch.linalg.eigvalsh(root @ first.covariance @ root)
    cross = float(values.clamp(min=0).sqrt().sum())
    traces = float(first.covariance.trace() + second.covariance.trace())
    return float((first.mean - second.mean).square().sum()) + traces - 2 * cross


def frechet(x: Tensor, y: Tensor) -> float:
    """The distance F of two sets of features, [m, d] and [n, d]."""
    return frechet_of_moments(moments(x), moments(y))


@dataclass(frozen=True)
class Extrapolated:
    """The Frechet distance at infinitely many images.

    Attributes:
        finite: F of all the images at hand.
        slope: how F grows with 1/N, N the harmonic mean of the numbers of images.
        estimate: F at 1/N = 0, with its interval; NaN limits if there are no more images than features.
    """

    finite: float
    slope: float
    estimate: Estimate


def frechet_distance(x: Tensor, y: Tensor, seed: int = 0) -> Extrapolated:
    """Extrapolate F of features [m, d] and [n, d] to infinitely many images.

    The images are divided into groups. F is computed with 0, 2, 4, 6 or 8 of 20 groups left out, and a line in 1/N is
    fitted to the means. Leaving out groups of one set only gives the variance to first order (the jackknife), and
    dividing all the images at random the variance between equal distributions.
    """
    x, y = finite(x), finite(y)
    x, y = (each[permutation(len(each), seed, "frechet", number)] for number, each in enumerate((x, y)))
    value = frechet(x, y)
    intercept, slope = _extrapolate(x, y, value)
    if min(len(x), len(y)) <= x.shape[1] or min(len(x), len(y)) < 2 * NUM_GROUPS:
        nan = float("nan")
        return Extrapolated(value, slope, Estimate(intercept, nan, nan))
    first_order = _jackknife_variance(x, y) + _jackknife_variance(y, x)
    null_variance = _null_variance(x, y, seed)
    along = error_along(intercept, max(value - intercept, 0.0), first_order / 4, null_variance)
    degrees = 2 * (NUM_GROUPS - 1)
    return Extrapolated(value, slope, SquaredDistance(intercept, along, null_variance, degrees).interval())


def _without(features: Tensor, start: int, num_left_out: int) -> Tensor:
    """The features without some groups, counted in a circle from `start`; a group is every 20th image."""
    left_out = {(start + i) % NUM_GROUPS for i in range(num_left_out)}
    kept = [i for i in range(len(features)) if i % NUM_GROUPS not in left_out]
    return features[kept]


def _windows(num_left_out: int) -> Iterator[int]:
    yield from range(1 if num_left_out == 0 else NUM_GROUPS)


def _extrapolate(x: Tensor, y: Tensor, value: float) -> tuple[float, float]:
    """(F at 1/N = 0, slope), by least squares over the sizes."""
    inverse, means = [], []
    for num_left_out in LEFT_OUT:
        values = [
            value if num_left_out == 0 else frechet(*(_without(each, start, num_left_out) for each in (x, y)))
            for start in _windows(num_left_out)
        ]
        share = 1 - num_left_out / NUM_GROUPS
        inverse.append((1 / len(x) + 1 / len(y)) / 2 / share)
        means.append(sum(values) / len(values))
    middle, mean = sum(inverse) / len(inverse), sum(means) / len(means)
    deviations = [each - middle for each in inverse]
    slope = sum(d * (m - mean) for d, m in zip(deviations, means, strict=True)) / sum(
        d * d for d in deviations
    )
    return mean - slope * middle, slope


def _jackknife_variance(changed: Tensor, other: Tensor) -> float:
    """The variance of F that comes from one set, to first order: (g - 1)/g sum (F_-k - mean)^2 over g groups."""
    fixed = moments(other)
    root = square_root(fixed.covariance)
    values = torch.tensor(
        [
            frechet_of_moments(moments(_without(changed, start, 1)), fixed, root)
            for start in range(NUM_GROUPS)
        ],
        dtype=torch.float64,
    )
    return float((values - values.mean()).square().sum()) * (NUM_GROUPS - 1) / NUM_GROUPS


def _null_variance(x: Tensor, y: Tensor, seed: int) -> float:
    """The variance of F between two sets of these sizes from one distribution, by dividing all the images at random."""
    together = torch.cat([x, y])
    values = []
    for number in range(NUM_SHUFFLES):
        order = permutation(len(together), seed, "null", number)
        values.append(frechet(together[order[: len(x)]], together[order[len(x) :]]))
    return float(torch.tensor(values, dtype=torch.float64).var())

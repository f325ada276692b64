"""The Frechet distance of two sets of features (FID), extrapolated to infinitely many images, with an interval.

    F = |mean_x - mean_y|^2 + trace(S_x + S_y - 2 (S_x S_y)^(1/2))        Heusel et al. 2017, eq. 6

of N images is too large by about slope / N, even for equal distributions, and by a different amount for each model, so
F itself ranks nothing (Chong and Forsyth, "Effectively Unbiased FID", 2020). Near its minimum F is quadratic in the
errors of means and covariances, so the interval is that of a squared distance.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

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
MANY_FEATURES = 256
"""With more features, F takes seconds: there are fewer windows of groups, and half as many divisions."""
FEW_WINDOWS = 4


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


def frechet_of_moments(first: Moments, second: Moments) -> float:
    """The distance of two Gaussians."""
    root = square_root(second.covariance)
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
    fitted to the means. The variance to first order comes from how much each image moves F, and that between equal
    distributions from dividing all the images at random.
    """
    x, y = finite(x), finite(y)
    x, y = (each[permutation(len(each), seed, "frechet", number)] for number, each in enumerate((x, y)))
    value = frechet(x, y)
    intercept, slope = _extrapolate(x, y, value)
    if min(len(x), len(y)) <= x.shape[1] or min(len(x), len(y)) < 2 * NUM_GROUPS:
        nan = float("nan")
        return Extrapolated(value, slope, Estimate(intercept, nan, nan))
    first_order = sum(float(each.var()) / len(each) for each in influences(x, y))
    null_variance = _null_variance(x, y, seed)
    along = error_along(intercept, max(value - intercept, 0.0), first_order / 4, null_variance)
    degrees = _num_shuffles(x.shape[1]) - 1  # the null variance is the least certain part
    null_variance *= extrapolation_factor(x.shape[1])
    return Extrapolated(value, slope, SquaredDistance(intercept, along, null_variance, degrees).interval())


def _without(features: Tensor, start: int, num_left_out: int) -> Tensor:
    """The features without some groups, counted in a circle from `start`; a group is every 20th image."""
    groups = (torch.arange(len(features)) - start) % NUM_GROUPS
    return features[groups >= num_left_out]


def _windows(num_left_out: int, num_features: int) -> range:
    """Where the windows of groups that are left out begin."""
    if num_left_out == 0:
        return range(1)
    return range(0, NUM_GROUPS, NUM_GROUPS // FEW_WINDOWS if num_features > MANY_FEATURES else 1)


def _extrapolate(x: Tensor, y: Tensor, value: float) -> tuple[float, float]:
    """(F at 1/N = 0, slope), by least squares over the sizes."""
    inverse, means = [], []
    for num_left_out in LEFT_OUT:
        values = [
            value if num_left_out == 0 else frechet(*(_without(each, start, num_left_out) for each in (x, y)))
            for start in _windows(num_left_out, x.shape[1])
        ]
        share = 1 - num_left_out / NUM_GROUPS
        inverse.append((1 / len(x) + 1 / len(y)) / 2 / share)
        means.append(sum(values) / len(values))
    return _line(inverse, means)


def _line(at: Sequence[float], values: Sequence[float]) -> tuple[float, float]:
    """(value at 0, slope) of the least squares line."""
    middle, mean = sum(at) / len(at), sum(values) / len(values)
    deviations = [each - middle for each in at]
    slope = sum(d * (m - mean) for d, m in zip(deviations, values, strict=True)) / sum(
        d * d for d in deviations
    )
    return mean - slope * middle, slope


@cache
def extrapolation_factor(num_features: int) -> float:
    """By how much the extrapolation multiplies the variance of F between equal distributions: 1.36, or 1.53.

    There F is a mean over pairs of images. A set of the share s has a pair, with weight 1 / s^2, if none of its two
    groups is left out, so the extrapolation gives a pair a weight that depends on how far apart its groups are: 0 in
    the same group, 1.7 across the circle. These weights have mean 1, and their mean square is the factor.
    """
    shares = [1 - num_left_out / NUM_GROUPS for num_left_out in LEFT_OUT]
    counted = [
        _share_of_windows(num_left_out, num_features) / share**2
        for num_left_out, share in zip(LEFT_OUT, shares, strict=True)
    ]
    pairs = torch.stack(counted).flatten(1).T.tolist()
    weights = [_line([1 / share for share in shares], pair)[0] for pair in pairs]
    return sum(weight**2 for weight in weights) / len(weights)


def _share_of_windows(num_left_out: int, num_features: int) -> Tensor:
    """[groups, groups] in which share of the windows neither of two groups is left out."""
    windows = _windows(num_left_out, num_features)
    kept = torch.zeros(len(windows), NUM_GROUPS, dtype=torch.float64)
    for row, start in zip(kept, windows, strict=True):
        row[_without(torch.arange(NUM_GROUPS), start, num_left_out)] = 1.0
    return kept.T @ kept / len(windows)


def influences(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """How much each feature moves F, to first order: [m] and [n], each with mean 0 up to rounding.

    For x they are 2 (mean_x - mean_y).(x - mean_x) + (x - mean_x)'(1 - T)(x - mean_x), with T the optimal transport map
    from one Gaussian to the other, S_x^(-1/2) (S_x^(1/2) S_y S_x^(1/2))^(1/2) S_x^(-1/2); minus the mean of that.
    """
    of_x, of_y = moments(x), moments(y)
    root = square_root(of_x.covariance)
    inner = square_root(root @ of_y.covariance @ root)
    inverse = torch.linalg.pinv(root, hermitian=True)
    there = inverse @ inner @ inverse
    back = root @ torch.linalg.pinv(inner, hermitian=True) @ root
    apart = of_x.mean - of_y.mean
    return _influence(x - of_x.mean, apart, there), _influence(y - of_y.mean, -apart, back)


def _influence(centred: Tensor, apart: Tensor, transport: Tensor) -> Tensor:
    quadratic = centred.square().sum(dim=1) - ((centred @ transport) * centred).sum(dim=1)
    moved = 2 * centred @ apart + quadratic
    return moved - moved.mean()


def _num_shuffles(num_features: int) -> int:
    return NUM_SHUFFLES // 2 if num_features > MANY_FEATURES else NUM_SHUFFLES


def _null_variance(x: Tensor, y: Tensor, seed: int) -> float:
    """The variance of F between two sets of these sizes from one distribution, by dividing all the images at random."""
    together = torch.cat([x, y])
    values = []
    for number in range(_num_shuffles(x.shape[1])):
        order = torch.tensor(permutation(len(together), seed, "null", number))
        values.append(frechet(together[order[: len(x)]], together[order[len(x) :]]))
    return float(torch.tensor(values, dtype=torch.float64).var())

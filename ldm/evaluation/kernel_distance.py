"""The squared maximum mean discrepancy (MMD) of two sets of features, unbiased, with an interval that holds at zero.

KID and CMMD are this distance with different kernels and features. For features x_1 .. x_m and y_1 .. y_n

    U = mean of k(x_i, x_j) over i != j  +  mean of k(y_i, y_j) over i != j  -  2 mean of k(x_i, y_j)

(Gretton et al., "A Kernel Two-Sample Test", 2012, eq. 3). It is computed in blocks of rows, in a fixed order.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ldm.evaluation.intervals import SquaredDistance, finite
from ldm.evaluation.paired import Scores

Kernel = Callable[[Tensor, Tensor], Tensor]
"""[M, d] and [N, d] -> [M, N]."""

BLOCK_ROWS = 1024


def cubic_kernel(x: Tensor, y: Tensor) -> Tensor:
    """(x.y / d + 1)^3 with d features: KID, Binkowski et al., "Demystifying MMD GANs", 2018, eq. 4."""
    return (x @ y.T / x.shape[1] + 1) ** 3


def gaussian_kernel(x: Tensor, y: Tensor, sigma: float = 10.0) -> Tensor:
    """exp(-|x - y|^2 / (2 sigma^2)): CMMD, Jayasumana et al., "Rethinking FID", 2024, with their sigma of 10."""
    squares = x.square().sum(dim=1)[:, None] + y.square().sum(dim=1)[None] - 2 * x @ y.T
    return torch.exp(-squares.clamp(min=0) / (2 * sigma**2))


def quadratic_kernel(x: Tensor, y: Tensor) -> Tensor:
    """(x.y)^2, whose MMD is |E xx' - E yy'|^2 (Frobenius): it sees the spread that a nearly linear kernel misses."""
    return (x @ y.T) ** 2


@dataclass(frozen=True)
class _Within:
    """Sums over the pairs i != j of one set.

    Attributes:
        row_means: [N] mean of k(x_i, x_j) over j != i.
        mean: of all pairs.
        trace: of the covariance operator: mean k(x_i, x_i) - mean k(x_i, x_j).
        squares: an unbiased estimate of the trace of its square, by U-centring (Szekely and Rizzo 2014, eq. 2.8).
    """

    row_means: Tensor
    mean: float
    trace: float
    squares: float


def _within(x: Tensor, kernel: Kernel) -> _Within:
    n = len(x)
    sums, squares, diagonal = torch.zeros(n, dtype=torch.float64), 0.0, torch.zeros(n, dtype=torch.float64)
    for start in range(0, n, BLOCK_ROWS):
        block = kernel(x[start : start + BLOCK_ROWS], x)
        rows = torch.arange(len(block))
        diagonal[start : start + len(block)] = block[rows, start + rows]
        block[rows, start + rows] = 0.0
        sums[start : start + len(block)] = block.sum(dim=1)
        squares += float(block.square().sum())
    total = float(sums.sum())
    centred = squares - 2 * float(sums.square().sum()) / (n - 2) + total**2 / ((n - 1) * (n - 2))
    mean = total / (n * (n - 1))
    return _Within(sums / (n - 1), mean, float(diagonal.mean()) - mean, max(0.0, centred / (n * (n - 3))))


@dataclass(frozen=True)
class _Between:
    """Sums over all pairs of the two sets: means of rows [m], of columns [n], of all, and the trace of the product of
    the covariance operators."""

    row_means: Tensor
    column_means: Tensor
    mean: float
    squares: float


def _between(x: Tensor, y: Tensor, kernel: Kernel) -> _Between:
    m, n = len(x), len(y)
    rows, columns, squares = [], torch.zeros(n, dtype=torch.float64), 0.0
    for start in range(0, m, BLOCK_ROWS):
        block = kernel(x[start : start + BLOCK_ROWS], y)
        rows.append(block.mean(dim=1))
        columns += block.sum(dim=0)
        squares += float(block.square().sum())
    row_means, column_means = torch.cat(rows), columns / m
    mean = float(row_means.mean())
    centred = squares - n * float(row_means.square().sum()) - m * float(column_means.square().sum())
    return _Between(
        row_means, column_means, mean, max(0.0, (centred + m * n * mean**2) / ((m - 1) * (n - 1)))
    )


def kernel_distance(x: Tensor, y: Tensor, kernel: Kernel) -> SquaredDistance:
    """The unbiased squared MMD of two sets of features, [m, d] and [n, d], of at least 4 each.

    With C = S_x / m + S_y / n for the covariance operators S of the two sets, its variance is
    4 <Delta, C Delta> + 2 trace(C^2). Both terms are estimated from the kernel's matrices.
    """
    return distance_and_scores(x, y, kernel)[0]


def distance_and_scores(x: Tensor, y: Tensor, kernel: Kernel) -> tuple[SquaredDistance, Scores]:
    """`kernel_distance`, and what each image contributes to it, for paired comparisons with other x of the same seeds.

    The contribution of x_i is U + 2 (w_i - mean w), with w_i = mean of k(x_i, x_j) over j != i minus mean of
    k(x_i, y_j): its influence, to first order. The variance of second order, 2 trace(C^2), is `more_variance`.
    """
    x, y = finite(x), finite(y)
    m, n = len(x), len(y)
    of_x, of_y, between = _within(x, kernel), _within(y, kernel), _between(x, y, kernel)
    value = of_x.mean + of_y.mean - 2 * between.mean
    witness_x, witness_y = of_x.row_means - between.row_means, of_y.row_means - between.column_means
    first_order = float(witness_x.var()) / m + float(witness_y.var()) / n  # D'CD
    trace = of_x.trace / m + of_y.trace / n
    null_variance = (
        2 * of_x.squares / (m * (m - 1)) + 2 * of_y.squares / (n * (n - 1)) + 4 * between.squares / (m * n)
    )
    along = error_along(value, trace, first_order, null_variance)
    per_image = value + 2 * (witness_x - witness_x.mean())
    scores = Scores(value, per_image, 2 * (witness_y - witness_y.mean()), null_variance)
    return SquaredDistance(value, along, null_variance, min(m, n) - 1), scores


def error_along(value: float, trace: float, first_order: float, null_variance: float) -> float:
    """c of `SquaredDistance`, the error's variance along Delta, from |D|^2 = value + trace(C) and D'CD.

    D'CD / |D|^2 is a fair guess where Delta is small, and too small otherwise, as the error is spread over more
    directions than Delta. (D'CD - trace(C^2)) / (|D|^2 - trace(C)) has the right expectations above and below, but
    is unstable where Delta is small. The larger one is used, with a fifth of the largest possible value, |C|
    (Frobenius), added as far as Delta is not known. `scripts/coverage.py` measures how well this holds.
    """
    largest = (null_variance / 2) ** 0.5
    plain = first_order / (value + trace) if value + trace > 0 else 0.0
    corrected = (first_order - null_variance / 2) / value if value > 0 else 0.0
    unknown = min(1.0, null_variance**0.5 / value) if value > 0 else 1.0
    return float(min(max(plain, corrected) + 0.2 * unknown * largest, largest))

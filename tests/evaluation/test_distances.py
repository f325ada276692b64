"""The distances against their definitions, and their intervals against distributions whose distance is known."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ldm.evaluation.frechet import (
    LEFT_OUT,
    NUM_GROUPS,
    extrapolation_factor,
    frechet,
    frechet_distance,
    influences,
)
from ldm.evaluation.intervals import Estimate, mean_interval, t_quantile
from ldm.evaluation.kernel_distance import cubic_kernel, gaussian_kernel, kernel_distance, quadratic_kernel
from ldm.evaluation.metrics import exact_interval
from ldm.evaluation.neighbours import overlap


def normal(number: int, dim: int, seed: int, shift: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(number, dim, generator=generator, dtype=torch.float64)
    features[:, 0] += shift
    return features


def test_the_kernel_distance_is_the_u_statistic_of_its_definition() -> None:
    x, y = normal(7, 3, 0), normal(9, 3, 1, shift=1.0)
    for kernel in (cubic_kernel, gaussian_kernel, quadratic_kernel):
        within_x = torch.stack(
            [kernel(x[i : i + 1], x[j : j + 1]) for i in range(7) for j in range(7) if i != j]
        )
        within_y = torch.stack(
            [kernel(y[i : i + 1], y[j : j + 1]) for i in range(9) for j in range(9) if i != j]
        )
        expected = within_x.mean() + within_y.mean() - 2 * kernel(x, y).mean()
        assert kernel_distance(x, y, kernel).value == pytest.approx(float(expected), rel=1e-9, abs=1e-12)


def test_blocks_of_rows_do_not_change_the_distance(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = normal(20, 3, 0), normal(30, 3, 1)
    whole = kernel_distance(x, y, cubic_kernel)
    monkeypatch.setattr("ldm.evaluation.kernel_distance.BLOCK_ROWS", 7)
    in_blocks = kernel_distance(x, y, cubic_kernel)
    for name in ("value", "along", "null_variance"):
        assert getattr(in_blocks, name) == pytest.approx(getattr(whole, name), rel=1e-9)


def test_the_frechet_distance_of_known_gaussians() -> None:
    """In one dimension it is (difference of means)^2 + (difference of deviations)^2."""
    x, y = normal(50, 1, 0), normal(60, 1, 1, shift=1.0) * 3
    expected = (x.mean() - y.mean()) ** 2 + (x.std() - y.std()) ** 2
    assert frechet(x, y) == pytest.approx(float(expected), rel=1e-6)


def test_the_extrapolated_frechet_distance_of_equal_distributions_is_centred_on_zero() -> None:
    """F itself is far from 0 with as many images as these."""
    found = [frechet_distance(normal(100, 6, 2 * i), normal(100, 6, 2 * i + 1)) for i in range(12)]
    values = torch.tensor([each.estimate.value for each in found])
    assert min(each.finite for each in found) > 0.1
    assert abs(float(values.mean())) < 4 * float(values.std()) / len(values) ** 0.5
    assert all(each.slope > 0 for each in found)


def test_the_influence_of_each_image_is_the_derivative_of_the_distance() -> None:
    """Leaving one image out changes F by -influence / (N - 1), to first order."""
    x, y = normal(3000, 3, 0), 1.5 * normal(2500, 3, 1, shift=0.7)
    of_x, of_y = influences(x, y)
    value = frechet(x, y)
    for number, influence in ((3000, of_x), (2500, of_y)):
        expected = -influence[:8] / (number - 1)
        sets = [(x[kept], y) if number == 3000 else (x, y[kept]) for kept in _without_each(number, 8)]
        found = torch.tensor([frechet(*pair) - value for pair in sets], dtype=torch.float64)
        assert torch.allclose(found, expected, atol=6e-5)
        assert float(expected.abs().max()) > 1e-3  # the tolerance is small beside them


def _without_each(number: int, count: int) -> list[list[int]]:
    """All indices but one, for each of the first few."""
    return [[i for i in range(number) if i != left_out] for left_out in range(count)]


def test_no_interval_where_there_are_fewer_images_than_features() -> None:
    found = frechet_distance(normal(50, 60, 0), normal(50, 60, 1))
    assert found.estimate.low != found.estimate.low


@pytest.mark.parametrize(("num_features", "windows"), [(8, range(20)), (300, range(0, 20, 5))])
def test_the_extrapolation_raises_the_variance_by_its_factor(num_features: int, windows: range) -> None:
    """On the square of a mean of 20 groups, which is what F is near equal distributions, extrapolated 40,000 times."""
    groups = torch.randn(NUM_GROUPS, 40_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    inverse = torch.tensor([1 / (1 - number / NUM_GROUPS) for number in LEFT_OUT], dtype=torch.float64)
    squares = []
    for number in LEFT_OUT:
        kept = [groups.roll(-start, dims=0)[number:].mean(dim=0).square() for start in windows]
        squares.append(torch.stack(kept).mean(dim=0))
    columns = torch.stack([torch.ones_like(inverse), inverse], dim=1)
    at_zero = torch.linalg.lstsq(columns, torch.stack(squares)).solution[0]
    assert abs(float(at_zero.mean())) < 0.002  # the square of the true mean
    found = float(at_zero.var() / squares[0].var())
    assert extrapolation_factor(num_features) == pytest.approx(found, rel=0.04)


def coverage(make: Callable[[int], Estimate], truth: float, trials: int) -> tuple[float, float]:
    """The share of intervals that hold the truth, and the mean estimate in standard errors from it."""
    found = [make(seed) for seed in range(trials)]
    values = torch.tensor([each.value for each in found], dtype=torch.float64)
    away = float((values.mean() - truth) / (values.std() / trials**0.5))
    return sum(each.contains(truth) for each in found) / trials, away


@pytest.mark.parametrize("shift", [0.0, 0.5])
def test_intervals_of_the_kernel_distance_cover(shift: float) -> None:
    """The quadratic kernel's distance is |E xx' - E yy'|^2 = shift^4. `scripts/coverage.py` has 1,000 trials."""

    def make(seed: int) -> Estimate:
        x, y = normal(60, 4, 2 * seed), normal(60, 4, 2 * seed + 1, shift)
        return kernel_distance(x, y, quadratic_kernel).interval()

    share, away = coverage(make, shift**4, 300)
    assert 0.91 <= share <= 0.99
    assert abs(away) < 4


def test_the_interval_of_a_mean_is_students() -> None:
    from scipy.stats import t  # type: ignore[import-untyped]

    for degrees in (9, 30, 200):
        assert t_quantile(0.975, degrees) == pytest.approx(t.ppf(0.975, degrees), abs=2e-3)
    values = torch.arange(20.0)
    found = mean_interval(values)
    spread = t.ppf(0.975, 19) * float(values.std()) / 20**0.5
    assert (found.low, found.high) == pytest.approx((9.5 - spread, 9.5 + spread), abs=1e-2)
    assert mean_interval(values[:3]).low != mean_interval(values[:3]).low


def test_a_binomial_interval_of_many_images_is_finite() -> None:
    """The binomial coefficients of more than about 1,000 are too large for floats."""
    from scipy.stats import beta

    for right, total in ((0, 5000), (4321, 5000), (5000, 5000), (3, 1001)):
        low, high = exact_interval(right, total)
        assert low == pytest.approx(beta.ppf(0.025, right, total - right + 1) if right else 0.0, abs=1e-6)
        assert high == pytest.approx(
            beta.ppf(0.975, right + 1, total - right) if right < total else 1.0, abs=1e-6
        )


def test_overlap_of_points_counted_by_hand() -> None:
    """On a line, with one neighbour: references 0 1 10 11 reach 1 each; images at 0.5, 0.6 and 50 (and 51)."""
    reference = torch.tensor([[0.0], [1.0], [10.0], [11.0]])
    generated = torch.tensor([[0.5], [0.6], [50.0], [51.0]])
    found = overlap(generated, reference, k=1)
    assert found.precision.value == 0.5
    assert found.recall.value == 0.0  # the balls of 0.5 and 0.6 reach 0.1
    assert found.density.value == pytest.approx((2 + 2 + 0 + 0) / 4)
    assert found.coverage.value == 0.5


def test_a_nan_feature_is_an_error() -> None:
    x = normal(10, 3, 0)
    x[0, 0] = torch.nan
    with pytest.raises(ValueError, match="NaN"):
        kernel_distance(x, normal(10, 3, 1), cubic_kernel)

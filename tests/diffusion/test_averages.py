"""Power-function averages: width and exponent, the closed form, and any width rebuilt from snapshots of two widths."""

import itertools
import math

import numpy as np
import pytest

from ldm.diffusion import ema as averages
from ldm.diffusion.ema import (
    Array,
    Snapshot,
    gamma_of,
    rebuild,
    shares,
    split_name,
    stored_name,
    update_weight,
)
from ldm.errors import UserError

T = 600
SNAPSHOTS = [Snapshot(step, width) for step in range(30, T + 1, 30) for width in (0.05, 0.1)]


def walk(num_steps: int = T) -> Array:
    """Weights after each step: a random walk of four values, [T, 4]."""
    return 7 + np.random.default_rng(0).normal(size=(num_steps, 4)).cumsum(axis=0)


def accumulated(weights: Array, width: float) -> Array:
    """The average after each step, by the recurrence used in training: [T, 4]."""
    average, rows = np.full(weights.shape[1:], np.nan), []
    for step, now in enumerate(weights, 1):
        taken = update_weight(step, gamma_of(width))
        average = now if step == 1 else average + taken * (now - average)
        rows.append(average)
    return np.stack(rows)


def width_of(gamma: float) -> float:
    """The relative width for an exponent gamma >= 0: Eq. 123 of Karras et al. 2024."""
    return math.sqrt(gamma + 1) / ((gamma + 2) * math.sqrt(gamma + 3))


def every_step(num_steps: int = T) -> Array:
    return np.arange(1, num_steps + 1, dtype=np.float64)


@pytest.mark.parametrize("width", [0.01, 0.05, 0.1, 0.2, 0.28])
def test_width_and_exponent_are_inverse(width: float) -> None:
    assert width_of(gamma_of(width)) == pytest.approx(width, rel=1e-9)


def test_the_papers_pairs_of_width_and_exponent() -> None:
    """Karras et al. 2024 give gamma 16.97 for width 0.05 and 6.94 for 0.10; the plain mean has width 1/sqrt(12)."""
    assert gamma_of(0.05) == pytest.approx(16.97, abs=0.005)
    assert gamma_of(0.10) == pytest.approx(6.94, abs=0.005)
    assert width_of(0.0) == pytest.approx(12**-0.5)


@pytest.mark.parametrize("width", [0.03, 0.1, 0.25])
def test_a_width_is_the_relative_standard_deviation_of_the_shares(width: float) -> None:
    steps = every_step(20000)
    share = shares(20000, gamma_of(width), steps)
    mean = (steps * share).sum()
    assert share.sum() == pytest.approx(1)
    assert np.sqrt(((steps - mean) ** 2 * share).sum()) / 20000 == pytest.approx(width, rel=1e-3)


@pytest.mark.parametrize("width", [0.02, 0.05, 0.1, 0.28])
def test_the_recurrence_gives_the_closed_form(width: float) -> None:
    weights = walk()
    direct = accumulated(weights, width)
    for step in (1, 2, 77, T):
        np.testing.assert_allclose(direct[step - 1], shares(step, gamma_of(width), every_step()) @ weights)


def test_the_average_of_a_straight_line_is_known() -> None:
    """For weights w_i = i the average is (gamma + 1)/(gamma + 2) t, plus half a step because steps are discrete."""
    line, gamma = every_step()[:, None], gamma_of(0.1)
    expected = (gamma + 1) / (gamma + 2) * T + 0.5
    assert accumulated(line, 0.1)[-1, 0] == pytest.approx(expected, abs=0.01)
    assert shares(T, 0.0, every_step()) @ line[:, 0] == pytest.approx((T + 1) / 2)


@pytest.mark.parametrize("width", [0.03, 0.07, 0.15, 0.2])
@pytest.mark.parametrize("step", [450, T])
def test_any_width_is_rebuilt_from_snapshots_of_two(width: float, step: int) -> None:
    weights = walk()
    stored = {width: accumulated(weights, width) for width in (0.05, 0.1)}
    found = rebuild(SNAPSHOTS, Snapshot(step, width))
    kept = np.stack([stored[s.width][s.step - 1] for s in SNAPSHOTS])
    missed = found.coefficients @ kept - accumulated(weights, width)[step - 1]
    assert np.abs(missed).max() < 0.02 * weights.std(axis=0).min()
    assert found.residual < 0.06


def test_a_stored_average_comes_back_exactly() -> None:
    found = rebuild(SNAPSHOTS, Snapshot(T, 0.05))
    np.testing.assert_allclose(found.coefficients, [s == Snapshot(T, 0.05) for s in SNAPSHOTS], atol=1e-8)
    assert found.residual < 1e-9


@pytest.mark.parametrize("width", [0.02, 0.25])
def test_unchanged_weights_are_reproduced_exactly(width: float) -> None:
    found = rebuild(SNAPSHOTS, Snapshot(T, width))
    assert found.coefficients.sum() == pytest.approx(1, abs=1e-12)


def test_the_residual_is_the_difference_of_the_shares() -> None:
    found, wanted = rebuild(SNAPSHOTS, Snapshot(T, 0.2)), shares(T, gamma_of(0.2), every_step())
    rebuilt = found.coefficients @ [shares(s.step, gamma_of(s.width), every_step()) for s in SNAPSHOTS]
    assert np.linalg.norm(rebuilt - wanted) / np.linalg.norm(wanted) == pytest.approx(found.residual)


def continuous_product(a: Snapshot, b: Snapshot) -> float:
    """The integral of two densities (gamma + 1) tau^gamma / t^(gamma + 1): Eq. 151 of Karras et al. 2024."""
    p, q, end = gamma_of(a.width), gamma_of(b.width), min(a.step, b.step)
    density = (p + 1) * (q + 1) / (a.step * b.step)
    return float(density * (end / a.step) ** p * (end / b.step) ** q * end / (p + q + 1))


@pytest.mark.parametrize("width", [0.03, 0.07, 0.15, 0.2])
def test_in_a_long_run_it_is_algorithm_3(width: float) -> None:
    """More steps than a chunk, and snapshots at 40 steps of the run: the solution of the normal equations."""
    count, wanted = 20000, Snapshot(20000, width)
    snapshots = [Snapshot(s, w) for s in range(500, count + 1, 500) for w in (0.05, 0.1)]
    products = np.array([[continuous_product(a, b) for b in snapshots] for a in snapshots])
    theirs = np.linalg.solve(products, [continuous_product(a, wanted) for a in snapshots])
    np.testing.assert_allclose(rebuild(snapshots, wanted).coefficients, theirs, atol=2e-4)


def test_chunking_does_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = rebuild(SNAPSHOTS, Snapshot(T, 0.15))
    monkeypatch.setattr(averages, "CHUNK", 7)
    cut = rebuild(SNAPSHOTS, Snapshot(T, 0.15))
    np.testing.assert_allclose(cut.coefficients, whole.coefficients, atol=1e-9)
    assert cut.residual == pytest.approx(whole.residual)


def test_snapshots_after_the_requested_step_are_ignored() -> None:
    found = rebuild(SNAPSHOTS, Snapshot(300, 0.07))
    assert all(c == 0 for c, s in zip(found.coefficients, SNAPSHOTS, strict=True) if s.step > 300)
    assert found.residual < 0.05


@pytest.mark.parametrize("width", [0.0, -0.1, 0.29, float("nan")])
def test_a_width_out_of_range_is_rejected(width: float) -> None:
    with pytest.raises(UserError, match=r"width .* above 0 and at most 0\.28"):
        rebuild(SNAPSHOTS, Snapshot(T, width))


def test_rebuilding_without_snapshots_is_an_error() -> None:
    with pytest.raises(UserError, match="no snapshots up to step 20"):
        rebuild(SNAPSHOTS, Snapshot(20, 0.1))


def test_names_contain_their_width() -> None:
    for width, name in itertools.product([0.05, 1e-05, 0.123456789], ["a.weight", "a/b"]):
        assert split_name(stored_name(width, name)) == (width, name)
    with pytest.raises(UserError, match="is not an averaged weight"):
        split_name("denoiser.weight")

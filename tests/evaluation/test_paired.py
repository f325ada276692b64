"""Paired comparisons: what two measurements share cancels, and a distance's contributions are its influences."""

import pytest
import torch

from ldm.evaluation.intervals import mean_interval
from ldm.evaluation.kernel_distance import cubic_kernel, distance_and_scores, kernel_distance
from ldm.evaluation.paired import Scores, paired_difference
from ldm.noise import generator_for


def normal(rows: int, *key: int | str) -> torch.Tensor:
    return torch.randn(rows, 6, generator=generator_for(*key), dtype=torch.float64)


def test_the_difference_of_means_is_that_of_the_differences() -> None:
    first, second = (normal(50, name)[:, 0] for name in "ab")
    found = paired_difference(Scores.of_mean(first), Scores.of_mean(second)).interval()
    expected = mean_interval(first - second)
    assert found.value == pytest.approx(expected.value, abs=1e-12)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    with pytest.raises(ValueError, match="not paired"):
        paired_difference(Scores.of_mean(first), Scores.of_mean(second[1:]))


def test_few_images_have_no_interval() -> None:
    found = paired_difference(Scores.of_mean(torch.ones(5)), Scores.of_mean(torch.zeros(5))).interval()
    assert found.value == 1 and found.low != found.low


def test_a_contribution_is_how_far_the_distance_moves_with_one_image() -> None:
    """By leaving images out: N d(value) is minus the contribution's deviation, to first order."""
    x, y = normal(200, "x") + 0.7, normal(150, "y")
    distance, scores = distance_and_scores(x, y, cubic_kernel)
    assert distance == kernel_distance(x, y, cubic_kernel)
    assert float(scores.per_image.mean()) == pytest.approx(distance.value)
    for left_out in (0, 57):
        kept = torch.arange(200) != left_out
        moved = kernel_distance(x[kept], y, cubic_kernel).value - distance.value
        assert 199 * moved == pytest.approx(distance.value - float(scores.per_image[left_out]), rel=0.05)
        kept = torch.arange(150) != left_out
        moved = kernel_distance(x, y[kept], cubic_kernel).value - distance.value
        assert scores.per_reference is not None
        assert 149 * moved == pytest.approx(-float(scores.per_reference[left_out]), rel=0.05)


def test_paired_intervals_of_a_distance_cover_and_are_narrower() -> None:
    """Of models whose images differ little. The true difference is that of a large set."""
    covered, num_trials, truth = 0, 40, _true_difference()
    for trial in range(num_trials):
        x, y = normal(60, trial, "x"), normal(60, trial, "y")
        one, two = (distance_and_scores(s * x + 0.8, y, cubic_kernel)[1] for s in (1.0, 1.15))
        found = paired_difference(two, one)
        covered += found.interval().contains(truth)
        apart = (float(one.per_image.var()) + float(two.per_image.var())) / 60
        assert found.stderr < apart**0.5
    assert covered >= 34


def _true_difference() -> float:
    x, y = normal(2000, "x of truth"), normal(2000, "y of truth")
    one, two = (kernel_distance(s * x + 0.8, y, cubic_kernel).value for s in (1.0, 1.15))
    return two - one


def test_scores_survive_a_checkpoint_to_the_last_bit() -> None:
    _, scores = distance_and_scores(normal(12, "x"), normal(15, "y"), cubic_kernel)
    again = Scores.from_numbers(scores.numbers())
    assert again.value == scores.value and again.more_variance == scores.more_variance
    assert torch.equal(again.per_image, scores.per_image)
    assert again.per_reference is not None and scores.per_reference is not None
    assert torch.equal(again.per_reference, scores.per_reference)

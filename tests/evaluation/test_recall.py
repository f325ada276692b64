"""Recall by the nearest training image."""

import pytest
import torch

from ldm.evaluation.recall import recall, rms_distances


def test_the_distance_is_the_rms_of_the_pixels() -> None:
    first, second = torch.zeros(1, 3, 64, 64), torch.full((2, 3, 64, 64), 0.5)
    assert rms_distances(first, second).tolist() == [pytest.approx([0.5, 0.5])]


def test_copies_are_recalled_and_strangers_are_not() -> None:
    generator = torch.Generator().manual_seed(0)
    training = torch.rand(20, 3, 32, 32, generator=generator) * 2 - 1
    noisy = training[:10] + 0.1 * torch.randn(10, 3, 32, 32, generator=generator)
    result = recall(noisy, training, list(range(10)))
    assert result.top_1.share == result.top_5.share == 1.0
    wrong = recall(noisy, training, list(range(10, 20)))
    assert wrong.top_1.share == 0.0


def test_the_fifth_nearest_counts_among_five_and_the_sixth_does_not() -> None:
    training = torch.arange(8.0).view(8, 1, 1, 1).expand(8, 3, 32, 32) / 8
    generated = torch.zeros(2, 3, 32, 32)
    result = recall(generated, training, [4, 5])
    assert (result.top_1.num_right, result.top_5.num_right) == (0, 1)

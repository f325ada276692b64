"""The metrics against their definitions and published values, and the autoencoder's loss terms."""

from typing import Any

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from ldm.evaluation.metrics import bootstrap_mean, exact_interval, psnr, recall_at, ssim, wilson_interval
from train.autoencoder import kl_to_normal, laplacian_pyramid


def test_psnr_of_a_known_error() -> None:
    image = torch.zeros(2, 3, 16, 16)
    other = torch.stack([image[0] + 0.2, image[1] + 2.0])
    assert psnr(image, other).tolist() == pytest.approx([20.0, 0.0])


def test_ssim_is_one_for_equal_images_and_its_luminance_term_for_flat_ones() -> None:
    image = torch.rand(1, 3, 24, 24) * 2 - 1
    assert ssim(image, image).item() == pytest.approx(1.0, abs=1e-5)
    first, second = torch.full((1, 3, 16, 16), 0.5), torch.full((1, 3, 16, 16), 0.25)
    luminance = (2 * 0.5 * 0.25 + 4e-4) / (0.5**2 + 0.25**2 + 4e-4)
    assert ssim(first, second).item() == pytest.approx(luminance, abs=1e-4)
    assert ssim(image, image.flip(-1)).item() < 0.5


def test_the_kl_term_equals_torchs() -> None:
    mean, log_variance = torch.randn(4, 2, 3, 3), torch.randn(4, 2, 3, 3)
    theirs = kl_divergence(Normal(mean, (0.5 * log_variance).exp()), Normal(0.0, 1.0)).mean(dim=(1, 2, 3))
    assert torch.allclose(kl_to_normal(mean, log_variance), theirs, atol=1e-6)


def test_the_pyramid_detects_edges_but_not_flat_colour() -> None:
    flat, edge = torch.full((1, 3, 16, 16), 0.7), torch.zeros(1, 3, 16, 16)
    edge[..., 5:] = 1
    assert all(band.abs().max() < 1e-6 for band in laplacian_pyramid(flat, 3))
    assert all(band.abs().max() > 0.1 for band in laplacian_pyramid(edge, 3))
    assert [band.shape[-1] for band in laplacian_pyramid(edge, 3)] == [16, 8, 4]


# Retrieval

SIMILARITY = torch.tensor(
    [
        [0.9, 0.1, 0.2],  # image 0 finds its text first
        [0.8, 0.5, 0.1],  # image 1 finds its text second
        [0.7, 0.6, 0.3],  # image 2 finds its text third
    ]
)


def test_recall_of_both_directions() -> None:
    texts = ["a", "b", "c"]
    # texts find their images first, second (0.6 > 0.5), first
    assert recall_at(SIMILARITY, texts, 1) == {"image_to_text": 1 / 3, "text_to_image": 2 / 3}
    assert recall_at(SIMILARITY, texts, 2) == {"image_to_text": 2 / 3, "text_to_image": 1.0}
    assert recall_at(SIMILARITY, texts, 3) == {"image_to_text": 1.0, "text_to_image": 1.0}


def test_an_equal_text_is_not_a_wrong_answer() -> None:
    assert recall_at(SIMILARITY, ["a", "a", "c"], 1) == {"image_to_text": 2 / 3, "text_to_image": 2 / 3}


def test_equal_similarities_and_nan_are_misses() -> None:
    for value in (0.5, float("nan")):
        scores = recall_at(torch.full((3, 3), value), ["a", "b", "c"], 2)
        assert scores == {"image_to_text": 0.0, "text_to_image": 0.0}


# The interval of a proportion


@pytest.mark.parametrize(
    ("num_right", "num_judged", "low", "high"),
    [  # R. G. Newcombe, Statistics in Medicine 17 (1998) 857-872, Table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_the_interval_is_wilsons(num_right: int, num_judged: int, low: float, high: float) -> None:
    assert wilson_interval(num_right, num_judged) == pytest.approx((low, high), abs=6e-5)
    mirrored = wilson_interval(num_judged - num_right, num_judged)
    assert mirrored == pytest.approx((1 - high, 1 - low), abs=6e-5)


@pytest.mark.parametrize(
    ("num_right", "num_judged", "low", "high"),
    [  # the same table, method 5
        (81, 263, 0.2527, 0.3676),
        (15, 148, 0.0578, 0.1617),
        (0, 20, 0.0, 0.1684),
        (1, 29, 0.0009, 0.1776),
    ],
)
def test_the_exact_interval_is_clopper_and_pearsons(
    num_right: int, num_judged: int, low: float, high: float
) -> None:
    assert exact_interval(num_right, num_judged) == pytest.approx((low, high), abs=6e-5)
    mirrored = exact_interval(num_judged - num_right, num_judged)
    assert mirrored == pytest.approx((1 - high, 1 - low), abs=6e-5)


@pytest.mark.parametrize("interval", [wilson_interval, exact_interval])
def test_intervals_narrow_with_less_confidence_and_refuse_nonsense(interval: Any) -> None:
    wide, narrow = interval(8, 10), interval(8, 10, confidence=0.5)
    assert wide[0] < narrow[0] < 0.8 < narrow[1] < wide[1]
    for num_right, num_judged in ((0, 0), (3, 2), (-1, 2)):
        with pytest.raises(ValueError, match="not a proportion"):
            interval(num_right, num_judged)


def test_a_bootstrapped_mean_has_the_interval_of_the_central_limit_theorem() -> None:
    values = (torch.randn(400, generator=torch.Generator().manual_seed(0)) * 3 + 7).tolist()
    found = bootstrap_mean(values)
    half = 1.96 * 3 / 20
    assert found["num_images"] == 400 and found["mean"] == pytest.approx(7, abs=half)
    assert found["high"] - found["mean"] == pytest.approx(half, rel=0.1)
    assert found["mean"] - found["low"] == pytest.approx(half, rel=0.1)
    assert bootstrap_mean(values) == found
    assert bootstrap_mean([2.0, 2.0]) == {"mean": 2, "low": 2, "high": 2, "num_images": 2}
    with pytest.raises(ValueError, match="no values"):
        bootstrap_mean([])

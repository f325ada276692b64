"""Damage to images: a function of the key and the strength, stronger with it, and nothing at strength 0."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from ldm.data.degradations import DEGRADATIONS, DegradationSettings, degrade, degrade_drawn
from ldm.data.sample import SampleDraw
from ldm.io.images import image_to_tensor
from tests.support.tiny_images import photo

KEY: SampleDraw = (0, 0, "sample")
OFF = dict.fromkeys(DEGRADATIONS, 0)
SMOOTH = torch.linspace(-0.8, 0.8, 32).expand(3, 24, 32).contiguous()


def only(kind: str) -> DegradationSettings:
    return DegradationSettings.model_validate({**OFF, kind: DegradationSettings.model_fields[kind].default})


def image() -> torch.Tensor:
    """Something with edges: noise enlarged."""
    return image_to_tensor(photo(8, 6).resize((32, 24), 0))


@pytest.mark.parametrize("kind", DEGRADATIONS)
def test_each_kind_does_nothing_at_0_and_more_the_stronger_it_is(kind: str) -> None:
    clean = image()
    damaged = [
        degrade(clean, strength, (seed, 0, "sample"), only(kind))
        for strength in (0.0, 0.3, 0.6, 1.0)
        for seed in range(4)
    ]
    errors = [float((each - clean).square().mean()) for each in damaged]
    means = [np.mean(errors[at : at + 4]) for at in range(0, 16, 4)]
    assert max(errors[:4]) == 0 and means == sorted(means) and means[1] > 0
    assert all(each.shape == clean.shape and each.abs().max() <= 1 for each in damaged)


@pytest.mark.parametrize("kind", DEGRADATIONS)
def test_the_same_key_gives_the_same_damage_and_another_one_other_damage(kind: str) -> None:
    clean, settings = image(), only(kind)
    again = [degrade(clean, 0.7, KEY, settings) for _ in range(2)]
    assert torch.equal(*again)
    is_random = kind in ("gaussian_noise", "poisson_noise", "scratches")
    assert torch.equal(again[0], degrade(clean, 0.7, (0, 1, "sample"), settings)) is not is_random


def test_the_noise_has_the_deviation_that_is_set() -> None:
    grey = torch.zeros(3, 64, 64)
    noisy = degrade(grey, 0.5, KEY, only("gaussian_noise"))
    assert float(noisy.std()) / 2 == pytest.approx(0.125, rel=0.03)
    white = [degrade(torch.full_like(grey, value), 0.2, KEY, only("poisson_noise")) for value in (0.0, -0.5)]
    # the variance is proportional to the brightness, 1/2 and 1/4
    assert float(white[0].std()) / 2 == pytest.approx(0.05 * 0.5**0.5, rel=0.05)
    assert float(white[1].std()) / 2 == pytest.approx(0.05 * 0.25**0.5, rel=0.05)


def test_blur_keeps_a_ramp_and_its_mean() -> None:
    blurred = degrade(SMOOTH, 1.0, KEY, only("blur"))
    assert (blurred - SMOOTH)[..., 8:-8].abs().max() < 0.01


def test_several_kinds_are_combined_in_an_order_drawn_by_the_key() -> None:
    settings = DegradationSettings(max_at_once=3)
    clean = image()
    found = [degrade(clean, 0.8, (seed, 0, "x"), settings) for seed in range(6)]
    assert len({each.numpy().tobytes() for each in found}) == 6
    levels = (found[0] * 0.5 + 0.5) * 255
    assert (levels - levels.round()).abs().max() < 1e-3  # as in a file of 8 bits


def test_strengths_are_drawn_uniformly_and_belong_to_the_sample() -> None:
    drawn = [degrade_drawn(torch.zeros(3, 8, 8), (0, 0, str(n)), settings=only("blur")) for n in range(200)]
    strengths = np.array([each["damage_strength"] for each in drawn])
    assert (
        strengths.mean() == pytest.approx(0.5, abs=0.06) and strengths.max() > 0.97 and strengths.min() < 0.03
    )


def test_settings_without_any_damage_are_refused() -> None:
    with pytest.raises(ValidationError, match="every kind of damage is 0"):
        DegradationSettings.model_validate(OFF)
    assert DegradationSettings.model_validate({**OFF, "blur": 1}).kinds == ["blur"]
    with pytest.raises(ValidationError, match="every kind of damage is 0"):
        DegradationSettings.model_validate({**OFF, "downscale": 1})

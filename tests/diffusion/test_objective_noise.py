"""Random numbers, added noise and weights: the full loss against diffusers' training script, masks, Huber, tenths."""

import math
from statistics import NormalDist
from typing import Any

import pytest
import torch
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import Tensor
from torch.nn import functional

from ldm.diffusion.objective import (
    ObjectiveSettings,
    diffusion_loss,
    masked_mean,
    pointwise_error,
    split_by_tenth,
    timestep_at,
)
from ldm.diffusion.path import DDPMPath, PredictionType, ScheduleSettings
from ldm.types import Conditioning, Step

PROMPTS = Conditioning(torch.zeros(1, 1, 1))
SCHEDULE = DDPMPath(ScheduleSettings())
TIMESTEPS = torch.tensor([0, 250, 999])


def half(
    latents: Tensor, timesteps: Tensor, conditioning: Conditioning, *, step: Step | None = None
) -> Tensor:
    """A denoiser that returns half of its input."""
    return latents / 2


def draws() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Latents, noise and perturbation [3, 4, 2, 2], offset [3, 4]."""
    generator = torch.Generator().manual_seed(0)
    first, second, third = torch.randn(3, 3, 4, 2, 2, generator=generator)
    return first, second, third, torch.randn(3, 4, generator=generator)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_the_loss_equals_diffusers_training_script(prediction_type: PredictionType) -> None:
    """`train_text_to_image.py` with --noise_offset 0.1 --input_perturbation 0.2, bit for bit at each step."""
    latents, noise, perturbation, offset = draws()
    path = ScheduleSettings(prediction_type=prediction_type)
    scheduler = DDPMScheduler.from_config(path.model_dump())
    their_noise = noise + 0.1 * offset[:, :, None, None]
    noisy = scheduler.add_noise(latents, their_noise + 0.2 * perturbation, TIMESTEPS)
    target = {
        "epsilon": their_noise,
        "sample": latents,
        "v_prediction": scheduler.get_velocity(latents, their_noise, TIMESTEPS),
    }[prediction_type]
    expected = functional.mse_loss(noisy / 2, target, reduction="none").mean(dim=(1, 2, 3))
    ours = diffusion_loss(
        half, latents, noise, TIMESTEPS, PROMPTS, DDPMPath(path),
        ObjectiveSettings(offset_noise=0.1, input_perturbation=0.2),
        offset=offset, perturbation=perturbation,
    )  # fmt: skip
    assert torch.equal(ours, expected)


def test_unused_random_numbers_change_nothing() -> None:
    latents, noise, perturbation, offset = draws()
    plain = diffusion_loss(half, latents, noise, TIMESTEPS, PROMPTS, SCHEDULE, ObjectiveSettings())
    given = diffusion_loss(
        half, latents, noise, TIMESTEPS, PROMPTS, SCHEDULE, ObjectiveSettings(),
        offset=offset, perturbation=perturbation,
    )  # fmt: skip
    assert torch.equal(plain, given)


@pytest.mark.parametrize("changes", [{"offset_noise": 0.1}, {"input_perturbation": 0.1}])
def test_required_random_numbers_must_be_given(changes: dict[str, Any]) -> None:
    latents, noise, _, _ = draws()
    with pytest.raises(AssertionError, match=next(iter(changes))):
        diffusion_loss(
            half, latents, noise, TIMESTEPS, PROMPTS, SCHEDULE, ObjectiveSettings.model_validate(changes)
        )


def test_huber_is_diffusers_formula_between_a_square_and_a_line() -> None:
    settings = ObjectiveSettings(loss="huber", huber_delta=0.1)
    difference = torch.linspace(-3, 3, 101, dtype=torch.float64)
    theirs = 2 * 0.1 * ((difference**2 + 0.1**2).sqrt() - 0.1)
    torch.testing.assert_close(pointwise_error(difference, settings), theirs)
    small, large = torch.tensor([1e-6]), torch.tensor([1e6])
    torch.testing.assert_close(pointwise_error(small, settings), small**2, rtol=1e-5, atol=0)
    torch.testing.assert_close(pointwise_error(large, settings), 2 * 0.1 * large, rtol=1e-5, atol=0)


def test_huber_reaches_the_loss() -> None:
    latents, noise, _, _ = draws()
    settings = ObjectiveSettings(loss="huber", huber_delta=0.3)
    loss = diffusion_loss(half, latents, noise, TIMESTEPS, PROMPTS, SCHEDULE, settings)
    error = SCHEDULE.add_noise(latents, noise, TIMESTEPS) / 2 - noise
    torch.testing.assert_close(loss, pointwise_error(error, settings).mean(dim=(1, 2, 3)))
    assert not torch.allclose(loss, error.square().mean(dim=(1, 2, 3)))


def test_a_masked_loss_is_the_mean_over_the_masked_area() -> None:
    latents, noise, _, _ = draws()
    mask = torch.zeros(3, 1, 2, 2)
    mask[0, 0, 0, 1], mask[1] = 1, 0.25  # one position; all positions equally; no position
    plain = ObjectiveSettings()
    error = (SCHEDULE.add_noise(latents, noise, TIMESTEPS) / 2 - noise).square()
    loss = diffusion_loss(half, latents, noise, TIMESTEPS, PROMPTS, SCHEDULE, plain, mask=mask)
    torch.testing.assert_close(
        loss, torch.stack([error[0, :, 0, 1].mean(), error[1].mean(), torch.zeros(())])
    )


def test_positions_outside_the_mask_have_no_gradient() -> None:
    error, mask = torch.rand(2, 4, 2, 2, requires_grad=True), torch.zeros(2, 1, 2, 2)
    mask[0, 0, 1, 1] = 1
    (gradient,) = torch.autograd.grad(masked_mean(error, mask).sum(), error)
    assert torch.isfinite(gradient).all()
    assert torch.equal(gradient != 0, (mask > 0).expand(2, 4, 2, 2))


def test_logit_normal_timesteps_have_their_quantiles() -> None:
    """The u-quantile of a logit-normal is sigmoid(mean + std q(u)), q the normal quantile."""
    settings = ObjectiveSettings(timestep_distribution="logit_normal", logit_mean=-0.5, logit_std=1.5)
    position = torch.linspace(0, 1, 1001)[:-1]
    timesteps = timestep_at(position, SCHEDULE, settings)
    for u in (0.1, 0.5, 0.9):
        expected = 1000 / (1 + math.exp(0.5 - 1.5 * NormalDist().inv_cdf(u)))
        assert timesteps[round(1000 * u)].item() == pytest.approx(expected, abs=1)
    assert (timesteps.diff() >= 0).all()


def test_logit_normal_keeps_inside_the_schedule_and_can_be_shifted() -> None:
    settings = ObjectiveSettings(timestep_distribution="logit_normal", logit_std=9.0, timestep_shift=3.0)
    ends = timestep_at(torch.tensor([0.0, 1e-30, 0.5, 0.99999999, 1.0]), SCHEDULE, settings)
    assert ends.tolist() == [0, 0, 750, 999, 999]


def test_the_tenths_divide_any_schedule() -> None:
    tenths = SCHEDULE.tenth(torch.arange(1000))
    assert torch.bincount(tenths).tolist() == [100] * 10 and (tenths.diff() >= 0).all()
    short = DDPMPath(ScheduleSettings(num_train_timesteps=7))
    assert short.tenth(torch.arange(7)).tolist() == [0, 1, 2, 4, 5, 7, 8]


def test_losses_are_summed_by_tenth_without_placeholders() -> None:
    losses, tenths = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0]), torch.tensor([0, 9, 0, 3, 3])
    weight = torch.tensor([1.0, 1.0, 1.0, 1.0, 0.0])
    sums, counts = ((part * weight).sum(dim=1) for part in split_by_tenth(losses, tenths))
    assert sums.tolist() == [5, 0, 0, 8, 0, 0, 0, 0, 0, 2]
    assert counts.tolist() == [2, 0, 0, 1, 0, 0, 0, 0, 0, 1]
    assert split_by_tenth(losses, tenths)[0].sum() == losses.sum()


def test_a_nan_stays_in_its_tenth() -> None:
    sums = split_by_tenth(torch.tensor([torch.nan, 1.0]), torch.tensor([4, 5]))[0].sum(dim=1)
    assert sums.isnan().nonzero().tolist() == [[4]] and sums[5] == 1

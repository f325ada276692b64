"""The loss equals a loop over samples, published weights, and the variance that no denoiser can remove."""

import pytest
import torch
from torch import Tensor

from ldm.diffusion.objective import ObjectiveSettings, diffusion_loss, loss_weight, timestep_at
from ldm.diffusion.path import DDPMPath, PredictionType, ScheduleSettings
from ldm.types import Conditioning, Step

KINDS: list[PredictionType] = ["epsilon", "v_prediction", "sample"]
PROMPTS = Conditioning(torch.zeros(1, 1, 1))


@pytest.mark.parametrize("prediction_type", KINDS)
def test_min_snr_weighs_the_error_of_x_0_by_the_clamped_snr(prediction_type: PredictionType) -> None:
    """The x_0 error is the epsilon error over snr and the v error over snr + 1; min-SNR weights it by min(snr, 5)."""
    snr = torch.tensor([0.01, 1.0, 5.0, 80.0])
    weight = loss_weight(snr, prediction_type, ObjectiveSettings(weighting="min_snr"))
    of_x_0 = {"epsilon": weight * snr, "v_prediction": weight * (snr + 1), "sample": weight}[prediction_type]
    assert torch.allclose(of_x_0, snr.clamp(max=5))


@pytest.mark.parametrize("prediction_type", KINDS)
def test_x_0_weighting_is_constant_over_noise_levels(prediction_type: PredictionType) -> None:
    snr = torch.tensor([0.02, 1.0, 80.0])
    weight = loss_weight(snr, prediction_type, ObjectiveSettings(weighting="x_0"))
    of_x_0 = {"epsilon": weight * snr, "v_prediction": weight * (snr + 1), "sample": weight}[prediction_type]
    assert torch.allclose(of_x_0, torch.ones(3))


@pytest.mark.parametrize("prediction_type", KINDS)
@pytest.mark.parametrize("weighting", ["none", "min_snr", "x_0"])
def test_the_weight_is_finite_at_zero_snr(prediction_type: PredictionType, weighting: str) -> None:
    settings = ObjectiveSettings.model_validate({"weighting": weighting})
    assert torch.isfinite(loss_weight(torch.tensor([0.0]), prediction_type, settings)).all()


def test_timesteps_cover_the_schedule_evenly_and_stay_inside() -> None:
    schedule = DDPMPath(ScheduleSettings())
    timesteps = timestep_at((torch.arange(4000) + 0.5) / 4000, schedule, ObjectiveSettings())
    assert torch.bincount(timesteps).tolist() == [4] * 1000
    assert timestep_at(torch.tensor([0.99999999]), schedule, ObjectiveSettings()).item() == 999


def test_a_shift_draws_high_noise_more_often() -> None:
    """With s = 3, half of the samples are above s/2 / (1 + (s - 1)/2) = 0.75 of the schedule."""
    settings = ObjectiveSettings(timestep_shift=3.0)
    timesteps = timestep_at(torch.linspace(0, 1, 4001)[:-1], DDPMPath(ScheduleSettings()), settings)
    assert timesteps.median().item() == pytest.approx(750, abs=1)
    assert timesteps.min() == 0 and timesteps.max() == 999


@pytest.mark.parametrize("prediction_type", KINDS)
def test_the_ideal_denoisers_loss_is_the_conditional_variance(prediction_type: PredictionType) -> None:
    """Data N(0, s^2): E[x_0 | x_t] = alpha s^2 x_t/(alpha^2 s^2 + sigma^2) leaves variance s^2 sigma^2/(...)."""
    schedule, deviation = DDPMPath(ScheduleSettings(prediction_type=prediction_type)), 0.5
    timesteps = torch.full((64,), 400)
    alpha, sigma = schedule.alpha(timesteps), schedule.sigma(timesteps)
    total = alpha**2 * deviation**2 + sigma**2

    def ideal(
        latents: Tensor, timesteps: Tensor, prompts: Conditioning, *, step: Step | None = None
    ) -> Tensor:
        x_0 = alpha * deviation**2 * latents / total
        return schedule.target(x_0, (latents - alpha * x_0) / sigma, timesteps)

    generator = torch.Generator().manual_seed(0)
    x_0 = deviation * torch.randn(64, 4, 16, 16, generator=generator)
    noise = torch.randn(64, 4, 16, 16, generator=generator)
    loss = diffusion_loss(ideal, x_0, noise, timesteps, PROMPTS, schedule, ObjectiveSettings())
    variance = (deviation**2 * sigma**2 / total).flatten()[0]
    per_unit = {"epsilon": (alpha / sigma) ** 2, "v_prediction": 1 / sigma**2, "sample": torch.ones(1)}
    expected = variance * per_unit[prediction_type].flatten()[0]
    assert loss.mean().item() == pytest.approx(expected.item(), rel=0.02)

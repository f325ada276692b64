"""The path equals diffusers', and predictions convert back to clean latents."""

import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.training_utils import compute_snr

from ldm.diffusion.path import DDPMPath, PredictionType, ScheduleSettings

SCHEDULES = ["linear", "scaled_linear", "squaredcos_cap_v2"]


@pytest.mark.parametrize("zero_snr", [False, True])
@pytest.mark.parametrize("beta_schedule", SCHEDULES)
def test_it_equals_diffusers_bit_for_bit(beta_schedule: str, zero_snr: bool) -> None:
    settings = ScheduleSettings.model_validate(
        {
            "beta_schedule": beta_schedule,
            "rescale_betas_zero_snr": zero_snr,
            "prediction_type": "v_prediction",
        }
    )
    theirs = DDPMScheduler.from_config(settings.model_dump())
    ours = DDPMPath(settings)
    assert torch.equal(ours.alphas_cumprod, theirs.alphas_cumprod)
    x_0, noise, timesteps = torch.randn(3, 4, 2, 2), torch.randn(3, 4, 2, 2), torch.tensor([0, 500, 999])
    assert torch.equal(ours.add_noise(x_0, noise, timesteps), theirs.add_noise(x_0, noise, timesteps))
    velocity = ours.target(x_0, noise, timesteps)
    assert torch.equal(velocity, theirs.get_velocity(x_0, noise, timesteps))


def test_alpha_and_sigma_are_on_the_unit_circle_and_snr_is_their_ratio() -> None:
    schedule, timesteps = DDPMPath(ScheduleSettings()), torch.arange(1000)
    alpha, sigma = schedule.alpha(timesteps).flatten(), schedule.sigma(timesteps).flatten()
    assert torch.allclose(alpha**2 + sigma**2, torch.ones(1000))
    assert torch.allclose(schedule.snr(timesteps), (alpha / sigma) ** 2, rtol=1e-4)


def test_zero_terminal_snr_ends_in_pure_noise_and_refuses_epsilon() -> None:
    settings = ScheduleSettings(rescale_betas_zero_snr=True, prediction_type="v_prediction")
    assert DDPMPath(settings).snr(torch.tensor([999])).item() == 0
    with pytest.raises(ValueError, match="epsilon carries no information"):
        ScheduleSettings(rescale_betas_zero_snr=True)


@pytest.mark.parametrize("num_levels", [10, 250, 4000])
@pytest.mark.parametrize("beta_schedule", SCHEDULES)
def test_other_betas_and_numbers_of_levels_equal_diffusers_too(beta_schedule: str, num_levels: int) -> None:
    """DDPM's betas and others, at every level: the noise levels, and the target of every prediction type."""
    settings = ScheduleSettings.model_validate(
        {
            "beta_schedule": beta_schedule,
            "num_train_timesteps": num_levels,
            "beta_start": 0.0001,
            "beta_end": 0.02,
        }
    )
    theirs, ours = DDPMScheduler.from_config(settings.model_dump()), DDPMPath(settings)
    assert torch.equal(ours.alphas_cumprod, theirs.alphas_cumprod)
    timesteps = torch.arange(num_levels)
    x_0, noise = torch.randn(2, num_levels, 1, 2, 2)
    assert torch.equal(ours.add_noise(x_0, noise, timesteps), theirs.add_noise(x_0, noise, timesteps))
    torch.testing.assert_close(ours.snr(timesteps), compute_snr(theirs, timesteps), rtol=1e-3, atol=0)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_a_perfect_prediction_means_x_0_to_diffusers(prediction_type: PredictionType) -> None:
    """The x_0 that diffusers' scheduler derives when the prediction equals the target."""
    settings = ScheduleSettings(prediction_type=prediction_type)
    schedule = DDPMPath(settings)
    scheduler = DDPMScheduler.from_config({**settings.model_dump(), "clip_sample": False})
    x_0, noise = torch.randn(2, 1, 4, 2, 2)
    for timestep in (1, 400, 700):
        timesteps = torch.tensor([timestep])
        target, x_t = (make(x_0, noise, timesteps) for make in (schedule.target, schedule.add_noise))
        theirs = scheduler.step(target, timestep, x_t).pred_original_sample
        assert torch.allclose(theirs, x_0, atol=1e-4)


@pytest.mark.parametrize("zero_snr", [False, True])
@pytest.mark.parametrize("beta_schedule", SCHEDULES)
def test_a_sampler_made_from_our_config_follows_our_path(beta_schedule: str, zero_snr: bool) -> None:
    settings = ScheduleSettings.model_validate(
        {
            "beta_schedule": beta_schedule,
            "rescale_betas_zero_snr": zero_snr,
            "prediction_type": "v_prediction",
        }
    )
    schedule = DDPMPath(settings)
    sampler = DDIMScheduler.from_config(schedule.scheduler_config())
    assert torch.equal(sampler.alphas_cumprod, schedule.alphas_cumprod)
    assert sampler.config["prediction_type"] == "v_prediction"

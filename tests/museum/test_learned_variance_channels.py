"""diffusers' DPM-Solver takes the mean of a network with a learned variance to be its first three channels.

Latents have four or more channels, so a model of Improved DDPM in latent space fails in a shape error; with six output
channels for three latent ones it would be right by luck.
"""

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler
from torch import Tensor

from ldm.diffusion.path import DDPMPath, ScheduleSettings
from ldm.diffusion.sampling import denoise, plan_sampling
from ldm.diffusion.schedulers import make_scheduler
from ldm.types import Conditioning, Step

CONFIG = DDPMPath(ScheduleSettings(learn_variance=True)).scheduler_config()
NOISE = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))


def network(
    latents: Tensor, timesteps: Tensor, conditioning: Conditioning, *, step: Step | None = None
) -> Tensor:
    """A mean and a variance."""
    return torch.cat([latents.tanh(), latents.sin()], dim=1)


def mean_only(
    latents: Tensor, timesteps: Tensor, conditioning: Conditioning, *, step: Step | None = None
) -> Tensor:
    return latents.tanh()


def ours(denoiser: object, config: dict[str, object]) -> Tensor:
    plan = plan_sampling(make_scheduler("dpmpp_2m", config), 4)
    (*_, (_, latents)) = denoise(denoiser, plan, NOISE, Conditioning(torch.zeros(1, 1, 1)))  # type: ignore[arg-type]
    return latents


def test_theirs_fails_with_four_channels_and_ours_samples_with_the_mean() -> None:
    plain = {key: value for key, value in CONFIG.items() if key != "variance_type"}
    assert torch.equal(ours(network, CONFIG), ours(mean_only, plain))
    theirs = DPMSolverMultistepScheduler.from_config(CONFIG)
    theirs.set_timesteps(4)
    output = network(NOISE, theirs.timesteps[:1], Conditioning(torch.zeros(1, 1, 1)))
    with pytest.raises(RuntimeError, match="must match the size"):
        theirs.step(output, theirs.timesteps[0], NOISE)

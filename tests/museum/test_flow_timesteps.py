"""Given timesteps, diffusers' `FlowMatchEulerDiscreteScheduler` shifts the noise levels, but not the timesteps that the
network is told.

With shift 3 and timesteps 900 and 500 the latents have noise levels 0.964 and 0.75, and the network is told 0.9 and
0.5. The exact velocity of a Gaussian then ends far from the data.
"""

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from ldm.diffusion.flow import FlowPath, FlowSettings
from ldm.diffusion.sampling import denoise, plan_sampling
from ldm.diffusion.schedulers import make_scheduler
from ldm.errors import UserError
from ldm.types import Conditioning, Step
from tests.support.museum import shown_wrong

SPREAD = 0.6
TIMESTEPS = list(range(1000, 0, -20))
NOISE = torch.randn(1, 4, 64, 64, generator=torch.Generator().manual_seed(0))


def velocity(
    latents: Tensor, timesteps: Tensor, conditioning: Conditioning, *, step: Step | None = None
) -> Tensor:
    """noise - x_0 for data x_0 ~ N(0, SPREAD^2), exact at the level that it is told."""
    t = (timesteps / 1000).view(-1, 1, 1, 1)
    variance = (1 - t) ** 2 * SPREAD**2 + t**2
    return (t - (1 - t) * SPREAD**2) / variance * latents


def ours(shift: float) -> float:
    """The deviation of what is sampled at the timesteps, relative to that of the data."""
    scheduler = make_scheduler("euler", FlowPath(FlowSettings(shift=shift)).scheduler_config())
    plan = plan_sampling(scheduler, len(TIMESTEPS), timesteps=TIMESTEPS)
    (*_, (_, latents)) = denoise(velocity, plan, NOISE, Conditioning(torch.zeros(1, 1, 1)))
    return float(latents.std()) / SPREAD


def theirs(shift: float) -> float:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(timesteps=[float(t) for t in TIMESTEPS])
    latents = NOISE
    for t in scheduler.timesteps:
        output = velocity(latents, t[None], Conditioning(torch.zeros(1, 1, 1)))
        latents = scheduler.step(output, t, latents).prev_sample
    return float(latents.std()) / SPREAD


def test_theirs_leaves_the_path_and_ours_refuses() -> None:
    assert abs(ours(1.0) - 1) < 0.06 and abs(theirs(1.0) - 1) < 0.06
    with pytest.raises(UserError, match="cannot sample at given timesteps"):
        ours(3.0)
    shown_wrong(abs(theirs(3.0) - 1) > 0.15)

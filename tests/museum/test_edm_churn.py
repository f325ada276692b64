"""The churn of diffusers' `EDMEulerScheduler` adds noise after the denoiser was called, and reads its output at the
higher noise level all the same.

Algorithm 2 of Karras et al. 2022 adds the noise first and calls the denoiser with the noisier latents. The output F was
computed for other latents than it is applied to, so what it removes is not what was added.
"""

import torch
from diffusers import EDMEulerScheduler
from torch import Tensor

from ldm.diffusion.edm import EDMPath, EDMSettings
from ldm.diffusion.edm_heun import EDMHeunScheduler
from ldm.diffusion.sampling import denoise, plan_sampling
from ldm.types import Conditioning, Step

SPREAD, SIGMA_DATA, NUM_STEPS, CHURN = 0.6, 0.5, 60, 30.0
PATH = EDMPath(EDMSettings(sigma_data=SIGMA_DATA))
NOISE = torch.randn(1, 4, 64, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def exact(
    latents: Tensor, timesteps: Tensor, conditioning: Conditioning, *, step: Step | None = None
) -> Tensor:
    """F for data x_0 ~ N(0, SPREAD^2)."""
    at = timesteps.double()
    sigma, x = PATH.sigma(at), latents / PATH.c_in(at)
    x_0 = SPREAD**2 / (SPREAD**2 + sigma**2) * x
    return (x_0 - PATH.c_skip(at) * x) / PATH.c_out(at)


def theirs(churn: float) -> float:
    """The deviation of what the scheduler makes, relative to that of the data."""
    scheduler = EDMEulerScheduler(sigma_data=SIGMA_DATA)
    scheduler.set_timesteps(NUM_STEPS)
    latents, generator = NOISE * scheduler.init_noise_sigma, torch.Generator().manual_seed(1)
    for t in scheduler.timesteps:
        output = exact(scheduler.scale_model_input(latents, t), t[None], Conditioning(torch.zeros(1, 1, 1)))
        latents = scheduler.step(output, t, latents, s_churn=churn, generator=generator).prev_sample
    return float(latents.std()) / SPREAD


def ours(churn: float) -> float:
    plan = plan_sampling(EDMHeunScheduler(sigma_data=SIGMA_DATA, s_churn=churn), NUM_STEPS)
    generators, no_prompt = [torch.Generator().manual_seed(1)], Conditioning(torch.zeros(1, 1, 1))
    (*_, (_, latents)) = denoise(exact, plan, NOISE, no_prompt, generators=generators)
    return float(latents.std()) / SPREAD


def test_theirs_changes_the_distribution_and_ours_keeps_it() -> None:
    assert abs(ours(CHURN) - 1) < 0.03
    assert abs(theirs(0.0) - 1) < 0.06
    assert abs(theirs(CHURN) - 1) > 0.15

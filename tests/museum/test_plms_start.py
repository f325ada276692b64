"""diffusers' PLMS, begun at a later step (image-to-image), works one noise level off from its third call on.

The scheduler makes two calls in its first step and counts its calls, but the pipeline cuts off the timesteps before
the start, the repeated one among them. So the second call repeats the first step, and every later call treats the
latents as if they were one step further.
"""

import torch
from diffusers import PNDMScheduler
from torch import Tensor

from ldm.diffusion.sampling import denoise, plan_sampling
from ldm.diffusion.schedulers import make_scheduler
from ldm.types import Conditioning, Step
from tests.support.tiny_models import SD1_SCHEDULER

CLEAN, NOISE = (torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
TABLE = make_scheduler("ddim", SD1_SCHEDULER).alphas_cumprod
NUM_STEPS, START = 20, 10


def noise_in(latents: Tensor, timestep: int) -> Tensor:
    """The exact noise in latents that are CLEAN at that timestep."""
    return (latents - TABLE[timestep].sqrt() * CLEAN) / (1 - TABLE[timestep]).sqrt()


def error(latents: Tensor) -> float:
    """The distance from what remains at the schedule's last level, per element."""
    expected = TABLE[0].sqrt() * CLEAN + (1 - TABLE[0]).sqrt() * NOISE
    return float((latents - expected).square().mean().sqrt())


def theirs() -> float:
    """As StableDiffusionImg2ImgPipeline does it."""
    scheduler = PNDMScheduler.from_config(SD1_SCHEDULER)
    scheduler.set_timesteps(NUM_STEPS)
    timesteps = scheduler.timesteps[START * scheduler.order :]
    latents = scheduler.add_noise(CLEAN, NOISE, timesteps[:1])
    for t in timesteps:
        latents = scheduler.step(noise_in(latents, int(t)), t, latents).prev_sample
    return error(latents)


def ours() -> float:
    def exact(
        latents: Tensor, timesteps: Tensor, conditioning: Conditioning, *, step: Step | None = None
    ) -> Tensor:
        return noise_in(latents, int(timesteps[0]))

    plan = plan_sampling(make_scheduler("pndm", SD1_SCHEDULER), NUM_STEPS, start=START)
    (*_, (_, latents)) = denoise(exact, plan, NOISE, Conditioning(torch.zeros(1, 1, 1)), start=CLEAN)
    return error(latents)


def test_theirs_ends_at_a_wrong_level_and_ours_at_the_image() -> None:
    assert ours() < 1e-6
    assert theirs() > 0.003

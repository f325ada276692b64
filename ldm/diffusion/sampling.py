"""From noise to latents: guidance, and the denoising loop.

The step rules are diffusers' schedulers. Guidance is a function from denoiser to denoiser, the loop is a
generator.
"""

import inspect
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldm.diffusion.scheduler_names import SCHEDULERS
from ldm.diffusion.schedulers import make_scheduler, schedulers_for
from ldm.errors import UserError
from ldm.types import Conditioning, Denoiser, Step, concat_conditioning

__all__ = [
    "SCHEDULERS",
    "check_interval",
    "denoise",
    "guide",
    "make_scheduler",
    "plan_steps",
    "schedulers_for",
    "within",
]

Interval = tuple[float, float]
"""A part of the sampling, its start and its end in the order in which sampling comes to them.

Rising numbers are fractions of the steps: (0, 0.5) is the first half of them. Falling numbers are noise levels, sigma
over alpha as in `Step`: (5, 0.3) is from where there is five times as much noise as signal.
"""

EVERYWHERE: Interval = (0.0, 1.0)


def guide(
    denoiser: Denoiser,
    negative_prompt_embeds: Conditioning,
    guidance_scale: float,
    guidance_rescale: float = 0.0,
    interval: Interval = EVERYWHERE,
) -> Denoiser:
    """Classifier-free guidance (Ho & Salimans 2022, Eq. 6) in one call of 2B rows, negative prompts first.

        model_pred = negative + guidance_scale (positive - negative)

    Args:
        negative_prompt_embeds: 1 row, used for all, or B rows.
        guidance_scale: 1 or less means no guidance: the denoiser itself is returned.
        guidance_rescale: share of `rescale_guidance` that is mixed in, 0 to 1.
        interval: outside it the denoiser is called as it is, with B rows: half the work, and often better pictures
            (Kynkäänniemi et al. 2024, "Applying Guidance in a Limited Interval").
    """
    if guidance_scale <= 1:
        return denoiser

    def guided(
        latents: Tensor, timesteps: Tensor, prompt_embeds: Conditioning, *, step: Step | None = None
    ) -> Tensor:
        negatives = _as_rows(negative_prompt_embeds, len(prompt_embeds))
        both = concat_conditioning(negatives, prompt_embeds)
        output = denoiser(torch.cat([latents] * 2), torch.cat([timesteps] * 2), both, step=step)
        negative, positive = output.chunk(2)
        model_pred = negative + guidance_scale * (positive - negative)
        return rescale_guidance(model_pred, positive, guidance_rescale) if guidance_rescale else model_pred

    return _inside(interval, guided, denoiser)


def _inside(interval: Interval, guided: Denoiser, plain: Denoiser) -> Denoiser:
    """One denoiser at the steps within an interval, and where no step is told; another at the rest."""
    if interval == EVERYWHERE:
        return guided

    def either(
        latents: Tensor, timesteps: Tensor, prompt_embeds: Conditioning, *, step: Step | None = None
    ) -> Tensor:
        denoiser = guided if step is None or within(step, interval) else plain
        return denoiser(latents, timesteps, prompt_embeds, step=step)

    return either


def within(step: Step, interval: Interval) -> bool:
    """Whether a step is in an interval: at its start it is, at its end it is not."""
    start, end = interval
    return start <= step.fraction < end if start < end else start >= step.sigma > end


def check_interval(interval: Interval) -> None:
    """Refuse two numbers that are no interval.

    Raises:
        UserError: saying how fractions of the steps are written, and how noise levels.
    """
    start, end = interval
    finite = all(0 <= value < float("inf") for value in interval)  # not so of NaN
    if not finite or start == end or start < end > 1:
        raise UserError(
            f"guidance_interval is {start:g} {end:g}",
            "write fractions of the steps, rising and up to 1 (0 0.5), or noise levels, falling (5 0.3)",
        )


def rescale_guidance(model_pred: Tensor, positive: Tensor, guidance_rescale: float) -> Tensor:
    """Give a guided prediction back the spread of the positive one, Eq. 15 and 16 of Lin et al. 2023.

    Args:
        model_pred: the guided prediction [B, C, h, w].
        positive: the prediction for the prompt alone [B, C, h, w].
        guidance_rescale: phi; 0 changes nothing.
    """
    axes = list(range(1, positive.ndim))
    ratio = positive.std(dim=axes, keepdim=True) / model_pred.std(dim=axes, keepdim=True)
    return guidance_rescale * (model_pred * ratio) + (1 - guidance_rescale) * model_pred


def _as_rows(embeds: Conditioning, num_rows: int) -> Conditioning:
    return embeds.select([0] * num_rows) if len(embeds) == 1 and num_rows > 1 else embeds


def plan_steps(scheduler: Any, num_inference_steps: int) -> list[Step]:
    """Set the scheduler up and say, in plain numbers, what each denoiser call will be.

    Raises:
        UserError: the scheduler cannot make that number of steps.
    """
    num_levels = scheduler.config.num_train_timesteps
    if not 1 <= num_inference_steps <= num_levels:
        raise UserError(f"num_inference_steps is {num_inference_steps}", f"it must be 1 to {num_levels}")
    scheduler.set_timesteps(num_inference_steps)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)
    timesteps = [float(t) for t in scheduler.timesteps.tolist()]
    if min(timesteps) < 0 or max(timesteps) > num_levels - 1:  # some counts leave diffusers' own range
        raise UserError(
            f"num_inference_steps is {num_inference_steps}",
            "this scheduler cannot divide its timesteps by that number, use one more or less",
        )
    indices = [_step_index(scheduler, evaluation) for evaluation in range(len(timesteps))]
    return [
        Step(index, evaluation, timestep, sigma, index / (indices[-1] + 1))
        for evaluation, (index, timestep, sigma) in enumerate(
            zip(indices, timesteps, _sigmas_at(scheduler, timesteps), strict=True)
        )
    ]


def _step_index(scheduler: Any, evaluation: int) -> int:
    """The sampling step that a denoiser call belongs to."""
    if hasattr(scheduler, "plms_timesteps"):  # the first step makes two calls, each other one
        return max(evaluation - 1, 0)
    return evaluation // int(scheduler.order)


def _sigmas_at(scheduler: Any, timesteps: Sequence[float]) -> list[float]:
    """sigma / alpha at each timestep; log-linear between training timesteps, finite at zero SNR."""
    level = scheduler.alphas_cumprod.double().clamp(min=1e-12).cpu().numpy()
    log_sigmas = 0.5 * np.log((1 - level) / level)
    at: list[float] = np.exp(np.interp(timesteps, np.arange(len(level)), log_sigmas)).tolist()
    return at


@torch.no_grad()
def denoise(
    denoiser: Denoiser,
    scheduler: Any,
    noise: Tensor,
    prompt_embeds: Conditioning,
    *,
    num_inference_steps: int,
    generators: Sequence[torch.Generator] = (),
) -> Iterator[tuple[Step, Tensor]]:
    """Sample: yields the latents [B, C, h, w] after every sampling step, with the step's last denoiser call.

    Args:
        denoiser: guided or plain.
        scheduler: of `make_scheduler`.
        noise: standard normal [B, C, h, w], on the device to work on.
        prompt_embeds: B rows.
        generators: one an image, for the samplers that add noise; image i draws from generator i alone.
    """
    steps = plan_steps(scheduler, num_inference_steps)
    timesteps = _on_device(scheduler.timesteps, noise.device)
    options = _step_options(scheduler, generators)
    latents = noise * scheduler.init_noise_sigma
    for step, following in pairwise([*steps, None]):
        assert step is not None
        t = scheduler.timesteps[step.evaluation]
        model_input = scheduler.scale_model_input(latents, t)
        model_pred = denoiser(
            model_input, timesteps[step.evaluation].expand(len(noise)), prompt_embeds, step=step
        )
        latents = scheduler.step(model_pred, t, latents, return_dict=False, **options)[0]
        if following is None or following.index != step.index:
            yield step, latents


def _on_device(timesteps: Tensor, device: torch.device) -> Tensor:
    """The denoiser's timesteps in one transfer; the scheduler's own stay on the CPU, free to read."""
    return (timesteps.float() if timesteps.is_floating_point() else timesteps).to(device)


def _step_options(scheduler: Any, generators: Sequence[torch.Generator]) -> dict[str, Any]:
    if hasattr(scheduler, "noise_sampler_seed") and generators:  # its noise is a Brownian tree per image
        scheduler.noise_sampler_seed = [generator.initial_seed() for generator in generators]
    takes_generator = "generator" in inspect.signature(scheduler.step).parameters
    return {"generator": list(generators)} if takes_generator and generators else {}

"""The sampling loop, a generator that turns noise into latents. The update rules are diffusers' schedulers."""

import copy
import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ldm.diffusion.flow import TIME_SCALE, FlowPath
from ldm.diffusion.path import LEARNED_VARIANCE
from ldm.diffusion.paths import path_of_scheduler
from ldm.errors import UserError
from ldm.types import Conditioning, Denoiser, Step


@dataclass(frozen=True)
class KnownLatents:
    """The part of an image that sampling leaves as it is, for inpainting without a model made for it.

    Attributes:
        latents: clean [B, C, h, w].
        mask: [B, 1, h, w], 1 where the image may change and 0 where it is known.
    """

    latents: Tensor
    mask: Tensor


@dataclass(frozen=True)
class SamplingPlan:
    """All denoiser calls of a sampling run: computed once and used for any number of batches.

    Attributes:
        steps: one for each call of the denoiser, in plain Python numbers.
        timesteps: the scheduler's timesteps of those calls and of `following`, [calls] or [calls + 1].
        num_steps: number of sampling steps, not counting those skipped before the start or left out at the end.
        start: the index of the first step.
        prototype: the scheduler in its initial state.
        following: the call after the last one, if the plan stops before the end.
    """

    steps: tuple[Step, ...]
    timesteps: Tensor
    num_steps: int
    start: int
    prototype: Any
    following: Step | None = None

    def scheduler(self) -> Any:
        """A new scheduler for one batch; a scheduler's state changes with every step."""
        return copy.deepcopy(self.prototype)


def plan_sampling(
    scheduler: Any,
    num_inference_steps: int,
    *,
    start: int = 0,
    stop: int | None = None,
    timesteps: Sequence[int] = (),
) -> SamplingPlan:
    """Plan the sampling with a scheduler from `ldm.diffusion.schedulers.make_scheduler`, which is not modified.

    Args:
        start: the first step to run; earlier steps are skipped, as in image-to-image. `num_inference_steps` runs none.
        stop: the first step that is not run any more, after `start`; None runs all.
        timesteps: of each step, from most to least noise, in place of the scheduler's spacing.

    Raises:
        UserError: the scheduler does not support that number of steps, or has no step `start`.
    """
    num_levels = scheduler.config.num_train_timesteps
    if not 1 <= num_inference_steps <= num_levels:
        raise UserError(f"num_inference_steps is {num_inference_steps}", f"it must be 1 to {num_levels}")
    scheduler = copy.deepcopy(scheduler)
    if timesteps:
        _use_timesteps(scheduler, timesteps)
    else:
        _set_timesteps(scheduler, num_inference_steps)
    every = _all_steps(scheduler, num_inference_steps)
    num_steps = every[-1].index + 1
    if not 0 <= start <= num_steps:
        raise UserError(f"sampling cannot start at step {start}", f"use 0 to {num_steps}")
    stop = num_steps if stop is None else stop
    kept = _from_start(scheduler, every, start)
    if kept and hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(kept[0].evaluation)
    num_calls = sum(step.index < stop for step in kept)
    kept = kept[: num_calls + 1]
    to_run = scheduler.timesteps[[step.evaluation for step in kept]]
    steps = tuple(replace(step, evaluation=number) for number, step in enumerate(kept))
    following = steps[num_calls] if num_calls < len(steps) else None
    return SamplingPlan(steps[:num_calls], to_run, stop - start, start, scheduler, following)


def steps_before(plan: SamplingPlan, share: float) -> int:
    """How many steps of a whole sampling begin in the first `share` of the path: diffusers' `denoising_end`.

    The path is divided by timesteps, which most samplers space evenly, and a step is never cut in two.

    Args:
        share: from 0 to 1.
    """
    levels = int(plan.prototype.config.num_train_timesteps)
    cutoff = round(levels - share * levels)
    first_calls = {step.index: step.timestep for step in reversed(plan.steps)}
    return sum(timestep >= cutoff for timestep in first_calls.values())


def _set_timesteps(scheduler: Any, num_inference_steps: int) -> None:
    """Space the timesteps.

    Raises:
        UserError: diffusers cannot space this number of them.
    """
    try:
        scheduler.set_timesteps(num_inference_steps)
    except (ValueError, IndexError, ZeroDivisionError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"num_inference_steps is {num_inference_steps}",
            f"this scheduler cannot space its timesteps for that number ({reason}), use more or another scheduler",
        ) from None


def last_timestep(scheduler: Any) -> int:
    """The timestep with the most noise: the last of DDPM's table, or t = 1 of a flow."""
    levels = int(scheduler.config.num_train_timesteps)
    return levels if isinstance(path_of_scheduler(scheduler), FlowPath) else levels - 1


def _use_timesteps(scheduler: Any, timesteps: Sequence[int]) -> None:
    """Sample at these timesteps.

    Raises:
        UserError: the scheduler does not take them, or has no such timesteps.
    """
    name = type(scheduler).__name__
    last = last_timestep(scheduler)
    if max(timesteps) > last:
        raise UserError(f"timesteps has {max(timesteps)}", f"the largest of this model is {last}")
    refused = UserError(f"{name} cannot sample at given timesteps", "use scheduler dpmpp_2m, euler or heun")
    if "timesteps" not in inspect.signature(scheduler.set_timesteps).parameters:
        raise refused
    try:
        scheduler.set_timesteps(timesteps=list(timesteps))
    except (ValueError, TypeError, IndexError) as error:
        raise refused from error
    wanted = [float(t) for t in timesteps]
    if list(dict.fromkeys(map(float, scheduler.timesteps.tolist()))) != wanted:
        raise refused  # some take them, and use a spacing of their own
    if isinstance(path_of_scheduler(scheduler), FlowPath):
        levels = dict.fromkeys(round(TIME_SCALE * float(sigma), 3) for sigma in scheduler.sigmas)
        if list(levels)[: len(wanted)] != wanted:
            raise refused  # these shift the noise levels, and not the timesteps


def _all_steps(scheduler: Any, num_inference_steps: int) -> list[Step]:
    """Every denoiser call; `evaluation` is its index in the scheduler's timesteps."""
    timesteps = [float(t) for t in scheduler.timesteps.tolist()]
    try:
        sigmas = path_of_scheduler(scheduler).noise_to_signal(timesteps)
    except ValueError:  # for some counts, diffusers' timesteps are out of range
        raise UserError(
            f"num_inference_steps is {num_inference_steps}",
            "this scheduler cannot space its timesteps for that number, use one more or one less",
        ) from None
    indices = [_step_index(scheduler, evaluation) for evaluation in range(len(timesteps))]
    return [
        Step(index, evaluation, timestep, sigma, index / (indices[-1] + 1))
        for evaluation, (index, timestep, sigma) in enumerate(zip(indices, timesteps, sigmas, strict=True))
    ]


def _is_plms(scheduler: Any) -> bool:
    """Whether the first step makes two calls, at its own timestep and at the next one; all other steps make one."""
    return hasattr(scheduler, "plms_timesteps")


def _step_index(scheduler: Any, evaluation: int) -> int:
    """The sampling step that a denoiser call belongs to."""
    if _is_plms(scheduler):
        warm_up = len(scheduler.prk_timesteps)  # of Runge-Kutta, four calls for each of its steps
        return (
            evaluation // 4 if evaluation < warm_up else max(warm_up // 4 + evaluation - max(warm_up, 1), 0)
        )
    return evaluation // int(scheduler.order)


def _from_start(scheduler: Any, steps: Sequence[Step], start: int) -> list[Step]:
    """The calls of step `start` and all later steps."""
    kept = [step for step in steps if step.index >= start]
    if _is_plms(scheduler) and start > 0 and len(kept) > 1:  # the second call of the new first step
        return [kept[0], replace(kept[1], index=start, fraction=kept[0].fraction), *kept[1:]]
    return kept


@torch.no_grad()
def denoise(
    denoiser: Denoiser,
    plan: SamplingPlan,
    noise: Tensor,
    conditioning: Conditioning,
    *,
    generators: Sequence[torch.Generator] = (),
    start: Tensor | None = None,
    known: KnownLatents | None = None,
    latents: Tensor | None = None,
) -> Iterator[tuple[Step, Tensor]]:
    """Sample, yielding the last denoiser call of each sampling step and the latents [B, C, h, w] after it.

    Args:
        denoiser: with or without guidance.
        noise: standard normal [B, C, h, w], on the device to compute on.
        conditioning: B rows.
        generators: one per image, for samplers that add noise; image i only draws from generator i.
        start: clean latents [B, C, h, w] to which `noise` is added, for a plan that starts at a later step.
        known: put back after each call of the denoiser, with `noise` added to the level reached (RePaint's blending,
            Lugmayr et al. 2022, Eq. 8, with one noise for all levels as diffusers does).
        latents: [B, C, h, w] as a plan that stops where this one starts has left them; `noise` is then not added.
    """
    scheduler = plan.scheduler()
    timesteps = _on_device(plan.timesteps, noise.device)
    options = _step_options(scheduler, generators)
    latents = _first_latents(scheduler, plan, noise, start) if latents is None else latents
    for step, following in pairwise([*plan.steps, plan.following]):
        assert step is not None
        t = plan.timesteps[step.evaluation]
        model_input = _scale_model_input(scheduler, latents, t)
        model_pred = denoiser(
            model_input, timesteps[step.evaluation].expand(len(noise)), conditioning, step=step
        )
        if model_pred.shape[1] > latents.shape[1] and not _reads_variance(scheduler):
            model_pred = model_pred[:, : latents.shape[1]]
        latents = scheduler.step(model_pred, t, latents, return_dict=False, **options)[0]
        if known is not None:
            at_level = _known_at(scheduler, plan, known.latents, noise, step, following)
            latents = torch.where(known.mask > 0, latents, at_level)
        if following is None or following.index != step.index:
            yield step, latents


def _first_latents(scheduler: Any, plan: SamplingPlan, noise: Tensor, start: Tensor | None) -> Tensor:
    """Noise at the sampler's scale, or clean latents noised to the level of the first step."""
    if start is None:
        assert plan.start == 0, "a plan that starts at a later step needs start latents"
        return noise * getattr(scheduler, "init_noise_sigma", 1.0)
    return _add_noise(scheduler, start, noise, plan.timesteps[:1])


def _add_noise(scheduler: Any, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """Latents at the sampler's scale, noised to the level of `timesteps` [1]."""
    if hasattr(scheduler, "scale_noise"):  # flow matching's name for add_noise
        return scheduler.scale_noise(latents, timesteps, noise)  # type: ignore[no-any-return]
    return scheduler.add_noise(latents, noise, timesteps)  # type: ignore[no-any-return]


def _known_at(
    scheduler: Any, plan: SamplingPlan, clean: Tensor, noise: Tensor, step: Step, following: Step | None
) -> Tensor:
    """Known latents at the level that a call has reached: that of the following call, or none at the end."""
    if following is None:
        return clean
    if hasattr(scheduler, "sigmas_interpol") and following.index == step.index:
        # the middle of a DPM2 step, for which diffusers' add_noise takes the step's end
        return clean + following.sigma * noise
    return _add_noise(scheduler, clean, noise, plan.timesteps[following.evaluation][None])


def _scale_model_input(scheduler: Any, latents: Tensor, t: Tensor) -> Tensor:
    """The network's input; diffusers' flow-matching schedulers have no such method and use the latents unchanged."""
    scale = getattr(scheduler, "scale_model_input", None)
    return latents if scale is None else scale(latents, t)


def _reads_variance(scheduler: Any) -> bool:
    """Whether a sampler uses the second half of the output channels of a network that has learned a variance."""
    return getattr(scheduler.config, "variance_type", None) == LEARNED_VARIANCE


def _on_device(timesteps: Tensor, device: torch.device) -> Tensor:
    """Transfer all timesteps for the denoiser at once; the scheduler's copy stays on the CPU, where reads are free."""
    return (timesteps.float() if timesteps.is_floating_point() else timesteps).to(device)


def _step_options(scheduler: Any, generators: Sequence[torch.Generator]) -> dict[str, Any]:
    if (
        hasattr(scheduler, "noise_sampler_seed") and generators
    ):  # draws its noise from one Brownian tree per image
        scheduler.noise_sampler_seed = [generator.initial_seed() for generator in generators]
    takes_generator = "generator" in inspect.signature(scheduler.step).parameters
    return {"generator": list(generators)} if takes_generator and generators else {}

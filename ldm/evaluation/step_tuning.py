"""Timesteps for a sampler and a number of steps, chosen so that images come close to those of many steps.

The timesteps are optimised for a given model, as by Sabour et al. 2024 ("Align Your Steps"), but their measure is the
error itself: the distance of the final latents to those that the same sampler reaches with many steps from the same
noise. The search is by coordinates: each timestep in turn is moved towards its neighbours while that helps.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ldm.diffusion.path import ProbabilityPath
from ldm.diffusion.paths import path_of_scheduler
from ldm.diffusion.sampling import last_timestep, plan_sampling
from ldm.diffusion.schedulers import adds_noise, make_scheduler
from ldm.errors import UserError
from ldm.pipeline.pipeline import Pipeline

Timesteps = tuple[int, ...]
Distance = Callable[[Timesteps], float]

MOVES = (0.5, 0.25, 0.125)
"""How far a timestep is moved in each sweep, as a share of the way to its neighbour."""

NUM_REFERENCE_STEPS = 200
RHO = 7.0
"""Of the spacing of Karras et al. 2022, one of those that the search starts from."""

SIGMA_RANGE = (0.05, 80.0)
"""The noise levels, sigma over alpha, between which timesteps are spaced at first."""


@dataclass(frozen=True)
class TunedSteps:
    """The result for one model, sampler and number of steps.

    Attributes:
        timesteps: from most to least noise.
        distance: of the held-out images' latents to those of many steps, root mean square; `usual` is that of the
            sampler's own spacing, and `usual_by_steps` likewise for larger numbers of steps.
        equal_steps: how many steps the sampler's own spacing needs to be as close; 0 if more than were measured.
        reference_steps: what the distances are to.
    """

    timesteps: Timesteps
    distance: float
    usual: float
    usual_by_steps: dict[int, float]
    equal_steps: int
    reference_steps: int


def search_timesteps(
    distance: Distance,
    starts: Sequence[Timesteps],
    last: int,
    on_try: Callable[[], None] = lambda: None,
) -> Timesteps:
    """The best timesteps found from the best of several starts; the same for the same distances.

    Args:
        starts: falling timesteps, at least one list.
        last: the largest timestep.
        on_try: called after each measurement.
    """
    known: dict[Timesteps, float] = {}

    def measured(timesteps: Timesteps) -> float:
        if timesteps not in known:
            known[timesteps] = distance(timesteps)
        on_try()
        return known[timesteps]

    best = min(starts, key=measured)
    for share in MOVES:
        for index in range(len(best)):
            best = min([best, *moves(best, index, share, last)], key=measured)
    return best


def num_tries(num_steps: int, num_starts: int) -> int:
    """How often `search_timesteps` measures at most."""
    return num_starts + 3 * len(MOVES) * num_steps


def moves(timesteps: Timesteps, index: int, share: float, last: int) -> list[Timesteps]:
    """The timesteps with one of them moved by a share of the way to either neighbour; those that stay are left out."""
    above = timesteps[index - 1] if index else last + 1
    below = timesteps[index + 1] if index + 1 < len(timesteps) else -1
    here = timesteps[index]
    moved = {here + round(share * (end - here)) for end in (above, below)}
    return [
        (*timesteps[:index], t, *timesteps[index + 1 :])
        for t in sorted(moved)
        if below < t < above and t != here
    ]


def spaced_timesteps(path: ProbabilityPath, num_steps: int, last: int, rho: float) -> Timesteps:
    """Timesteps whose noise levels are spaced by Eq. 5 of Karras et al. 2022; a large rho spaces their logarithms.

    Args:
        last: the largest timestep.
    """
    levels = torch.tensor(path.noise_to_signal([float(t) for t in range(last + 1)]), dtype=torch.float64)
    low, high = max(SIGMA_RANGE[0], float(levels[0])), min(SIGMA_RANGE[1], float(levels[-1]))
    position = torch.linspace(0, 1, num_steps, dtype=torch.float64)
    wanted = (high ** (1 / rho) + position * (low ** (1 / rho) - high ** (1 / rho))) ** rho
    return distinct([int((levels - sigma).abs().argmin()) for sigma in wanted], last)


def distinct(timesteps: Sequence[int], last: int) -> Timesteps:
    """Falling timesteps from 0 to `last` that are as near to the given ones as that allows."""
    found: list[int] = []
    for index, t in enumerate(timesteps):
        ceiling = found[-1] - 1 if found else last
        found.append(max(min(t, ceiling), len(timesteps) - 1 - index))
    return tuple(found)


class StepMeter:
    """Measures how far images of few steps are from those of many, for a pipeline with a sampler that adds no noise.

    Args:
        prompts: one image is made of each.
        seed: of the first image; image i has seed + i.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        prompts: Sequence[str],
        *,
        scheduler: str,
        guidance_scale: float | None,
        seed: int,
    ) -> None:
        self.pipeline, self.prompts, self.scheduler = pipeline, list(prompts), scheduler
        self.guidance_scale, self.seeds = guidance_scale, [seed + i for i in range(len(prompts))]
        self.reference = self.latents(num_inference_steps=NUM_REFERENCE_STEPS)

    def latents(self, **steps: Any) -> Tensor:
        """The final latents [N, C, h, w]."""
        made = self.pipeline.generate(
            self.prompts,
            seeds=self.seeds,
            scheduler=self.scheduler,
            guidance_scale=self.guidance_scale,
            progress=False,
            **steps,
        )
        assert isinstance(made.latents, Tensor)
        return made.latents

    def of(self, timesteps: Timesteps) -> float:
        """The root mean square distance to the reference at given timesteps."""
        return self._distance(self.latents(timesteps=",".join(map(str, timesteps))))

    def of_usual(self, num_steps: int) -> float:
        """The same with the sampler's own spacing."""
        return self._distance(self.latents(num_inference_steps=num_steps))

    def _distance(self, latents: Tensor) -> float:
        return float((latents - self.reference).double().square().mean().sqrt())


def starts_for(pipeline: Pipeline, scheduler: str, num_steps: int) -> tuple[list[Timesteps], int]:
    """The timesteps that a search starts from, the sampler's own first, and the largest timestep of the model.

    Raises:
        UserError: the sampler is unknown, adds noise, so that its images with few and with many steps are different
            ones, or cannot sample at given timesteps.
    """
    made = make_scheduler(scheduler, pipeline.scheduler_config)
    if adds_noise(scheduler, pipeline.scheduler_config):
        raise UserError(
            f"scheduler {scheduler!r} adds noise at each step, so its images depend on their number",
            "choose one that adds none, such as dpmpp_2m or euler",
        )
    last, path = last_timestep(made), path_of_scheduler(made)
    plan = plan_sampling(made, num_steps)
    own = distinct([round(t) for t in dict.fromkeys(step.timestep for step in plan.steps)][:num_steps], last)
    plan_sampling(made, num_steps, timesteps=own)
    return [own, *(spaced_timesteps(path, num_steps, last, rho) for rho in (RHO, 3.0, 100.0))], last


def tune_steps(
    tuned_on: StepMeter, held_out: StepMeter, num_steps: int, on_try: Callable[[], None] = lambda: None
) -> TunedSteps:
    """Search timesteps on some images, and measure them on others."""
    starts, last = starts_for(tuned_on.pipeline, tuned_on.scheduler, num_steps)
    best = search_timesteps(tuned_on.of, starts, last, on_try)
    distance = held_out.of(best)
    by_steps: dict[int, float] = {}
    for count in range(num_steps, 4 * num_steps + 1):
        by_steps[count] = held_out.of_usual(count)
        if by_steps[count] <= distance:
            break
    equal = count if by_steps[count] <= distance else 0
    return TunedSteps(best, distance, by_steps[num_steps], by_steps, equal, NUM_REFERENCE_STEPS)

"""Known latents are put back after every denoiser call, at the noise level that the sampler has reached."""

from functools import cache

import pytest
import torch
from torch import Tensor

from ldm.diffusion.sampling import KnownLatents, SamplingPlan, denoise, plan_sampling
from ldm.diffusion.scheduler_names import SCHEDULERS
from ldm.diffusion.schedulers import make_scheduler
from ldm.types import Conditioning, Step
from tests.support.tiny_models import SD1_SCHEDULER

AVAILABLE = [name for name, entry in SCHEDULERS.items() if entry.available]
NO_PROMPT = Conditioning(torch.zeros(1, 1, 1))
CLEAN, NOISE = (torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
RIGHT_HALF = (torch.arange(8) >= 4).float().expand(1, 1, 8, 8)


class Recorder:
    """A denoiser that keeps what it was called with."""

    def __init__(self) -> None:
        self.calls: list[tuple[Tensor, Step]] = []

    def __call__(
        self, latents: Tensor, timesteps: Tensor, conditioning: Conditioning, *, step: Step | None = None
    ) -> Tensor:
        assert step is not None
        self.calls.append((latents.clone(), step))
        return torch.tanh(0.5 * latents + float(timesteps[0]) / 1000)


@cache
def planned(name: str, start: int) -> SamplingPlan:
    """Planned once: DPM2 takes a second."""
    return plan_sampling(make_scheduler(name, SD1_SCHEDULER), 7, start=start)


def sample(name: str, mask: Tensor | None, *, start: int = 0) -> tuple[Recorder, list[tuple[Step, Tensor]]]:
    plan = planned(name, start)
    recorder, generators = Recorder(), [torch.Generator().manual_seed(2)]
    known = None if mask is None else KnownLatents(CLEAN, mask)
    first = CLEAN if start else None
    steps = denoise(recorder, plan, NOISE, NO_PROMPT, generators=generators, start=first, known=known)
    return recorder, list(steps)


def noise_to_signal(latents: Tensor) -> tuple[float, float]:
    """b / a of the best a CLEAN + b NOISE, and how far the latents are from it."""
    basis = torch.stack([CLEAN[..., :4].flatten(), NOISE[..., :4].flatten()], dim=1).double()
    known = latents[..., :4].flatten().double()
    solution = torch.linalg.lstsq(basis, known).solution
    return float(solution[1] / solution[0]), float((basis @ solution - known).abs().max())


@pytest.mark.parametrize("name", AVAILABLE)
@pytest.mark.parametrize("start", [0, 3])
def test_every_call_after_the_first_sees_the_known_part_at_its_own_level(name: str, start: int) -> None:
    recorder, steps = sample(name, RIGHT_HALF, start=start)
    for latents, step in recorder.calls[1:]:
        ratio, error = noise_to_signal(latents)
        # at low noise the level between two table entries is rounded by the schedulers to one of them
        assert ratio == pytest.approx(step.sigma, rel=0.02, abs=0.004), step
        assert error < 1e-5
    assert torch.equal(steps[-1][1][..., :4], CLEAN[..., :4])


@pytest.mark.parametrize("name", AVAILABLE)
def test_a_white_mask_changes_nothing_and_a_black_one_gives_the_image_back(name: str) -> None:
    free = sample(name, None)[1][-1][1]
    assert torch.equal(sample(name, torch.ones(1, 1, 8, 8))[1][-1][1], free)
    assert torch.equal(sample(name, torch.zeros(1, 1, 8, 8))[1][-1][1], CLEAN)


def test_the_unknown_part_is_sampled_beside_the_known_one() -> None:
    made = sample("ddim", RIGHT_HALF)[1][-1][1]
    assert not torch.equal(made[..., 4:], CLEAN[..., 4:])
    # this denoiser looks at each latent alone, so the unknown part is as without known latents
    assert torch.equal(made[..., 4:], sample("ddim", None)[1][-1][1][..., 4:])


def test_a_plan_without_steps() -> None:
    plan = planned("ddim", 7)
    assert (plan.steps, plan.num_steps) == ((), 0)

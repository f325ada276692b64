"""Sampling that starts at a later step from given latents, as in image-to-image."""

import diffusers
import pytest
import torch
from torch import Tensor

from ldm.diffusion.sampling import denoise, plan_sampling
from ldm.diffusion.scheduler_names import SCHEDULERS
from ldm.diffusion.schedulers import make_scheduler
from ldm.errors import UserError
from ldm.types import Conditioning, Step
from tests.support.tiny_models import SD1_SCHEDULER

AVAILABLE = [name for name, entry in SCHEDULERS.items() if entry.available]
NO_PROMPT = Conditioning(torch.zeros(1, 1, 1))
CLEAN, NOISE = (torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))


def predict(latents: Tensor, timestep: float) -> Tensor:
    return torch.tanh(0.5 * latents + timestep / 1000)


def denoiser(
    latents: Tensor, timesteps: Tensor, conditioning: Conditioning, *, step: Step | None = None
) -> Tensor:
    return predict(latents, float(timesteps[0]))


def started(name: str, num_inference_steps: int, start: int) -> list[tuple[Step, Tensor]]:
    plan = plan_sampling(make_scheduler(name, SD1_SCHEDULER), num_inference_steps, start=start)
    generators = [torch.Generator().manual_seed(2)]
    return list(denoise(denoiser, plan, NOISE, NO_PROMPT, generators=generators, start=CLEAN))


@pytest.mark.parametrize(
    "name", ["ddim", "ddpm", "euler", "euler_a", "dpmpp_2m", "unipc", "heun", "lms", "deis"]
)
@pytest.mark.parametrize("start", [0, 3, 9])
def test_it_equals_diffusers_image_to_image(name: str, start: int) -> None:
    theirs = make_scheduler(name, SD1_SCHEDULER)
    theirs.set_timesteps(10)
    timesteps = theirs.timesteps[start * theirs.order :]
    if hasattr(theirs, "set_begin_index"):
        theirs.set_begin_index(start * theirs.order)
    latents = theirs.add_noise(CLEAN, NOISE, timesteps[:1])
    generator = torch.Generator().manual_seed(2)
    takes_noise = SCHEDULERS[name].stochastic
    for t in timesteps:
        model_pred = predict(theirs.scale_model_input(latents, t), float(t))
        more = {"generator": generator} if takes_noise else {}
        latents = theirs.step(model_pred, t, latents, return_dict=False, **more)[0]
    assert torch.equal(started(name, 10, start)[-1][1], latents)


@pytest.mark.parametrize("name", AVAILABLE)
def test_steps_before_the_start_are_skipped(name: str) -> None:
    steps = [step for step, _ in started(name, 8, 5)]
    assert [step.index for step in steps] == [5, 6, 7]
    assert [step.fraction for step in steps] == [5 / 8, 6 / 8, 7 / 8]
    whole = plan_sampling(make_scheduler(name, SD1_SCHEDULER), 8)
    later = plan_sampling(make_scheduler(name, SD1_SCHEDULER), 8, start=5)
    assert [step.evaluation for step in later.steps] == list(range(len(later.steps)))
    first = next(step for step in whole.steps if step.index == 5)
    assert (later.steps[0].timestep, later.steps[0].sigma) == (first.timestep, first.sigma)
    assert later.num_steps == 3


def test_plms_starts_with_two_calls_again() -> None:
    later = plan_sampling(make_scheduler("pndm", SD1_SCHEDULER), 8, start=5)
    assert [step.index for step in later.steps] == [5, 5, 6, 7]
    assert later.steps[1].timestep == later.steps[2].timestep < later.steps[0].timestep


def test_a_start_of_pure_data_is_kept_by_an_exact_denoiser() -> None:
    scheduler = make_scheduler("ddim", SD1_SCHEDULER)
    table = scheduler.alphas_cumprod

    def exact(
        latents: Tensor, timesteps: Tensor, conditioning: Conditioning, *, step: Step | None = None
    ) -> Tensor:
        level = table[timesteps].view(-1, 1, 1, 1)
        return (latents - level.sqrt() * CLEAN) / (1 - level).sqrt()

    plan = plan_sampling(scheduler, 10, start=4)
    (*_, (_, latents)) = denoise(exact, plan, NOISE, NO_PROMPT, start=CLEAN)
    # the schedule ends at its first level, which still has a little noise
    expected = table[0].sqrt() * CLEAN + (1 - table[0]).sqrt() * NOISE
    torch.testing.assert_close(latents, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("start", [-1, 11])
def test_an_invalid_start_is_rejected(start: int) -> None:
    with pytest.raises(UserError, match=f"start at step {start}: use 0 to 10"):
        plan_sampling(make_scheduler("ddim", SD1_SCHEDULER), 10, start=start)


@pytest.mark.parametrize("name", AVAILABLE)
def test_a_plan_can_be_reused_for_several_batches(name: str) -> None:
    plan = plan_sampling(make_scheduler(name, SD1_SCHEDULER), 5)

    def final() -> Tensor:
        generators = [torch.Generator().manual_seed(2)]
        return list(denoise(denoiser, plan, NOISE, NO_PROMPT, generators=generators))[-1][1]

    assert torch.equal(final(), final())


def test_planning_does_not_modify_the_scheduler() -> None:
    scheduler = make_scheduler("unipc", SD1_SCHEDULER)
    before = {name: str(value) for name, value in vars(scheduler).items()}
    list(denoise(denoiser, plan_sampling(scheduler, 4), NOISE, NO_PROMPT))
    assert {name: str(value) for name, value in vars(scheduler).items()} == before
    assert isinstance(scheduler, diffusers.UniPCMultistepScheduler)

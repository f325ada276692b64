"""Consistency distillation against closed forms: the trajectories of a Gaussian are known."""

import pytest
import torch
from diffusers import LCMScheduler
from torch import Tensor

from ldm.diffusion.consistency import (
    DistillSettings,
    Networks,
    boundary_scalings,
    check_distillable,
    consistency_loss,
    consistency_output,
    guidance_scales,
    guided_teacher,
    solver_step,
    solver_timesteps,
)
from ldm.diffusion.edm import EDMPath
from ldm.diffusion.flow import FlowPath, FlowSettings
from ldm.diffusion.path import DDPMPath, ProbabilityPath, ScheduleSettings
from ldm.diffusion.sampling import denoise, plan_sampling
from ldm.diffusion.schedulers import few_step_config, make_scheduler
from ldm.errors import UserError
from ldm.types import Conditioning, Denoiser, Step

MEAN, STD = 0.4, 0.7
PATHS: dict[str, ProbabilityPath] = {
    "epsilon": DDPMPath(ScheduleSettings()),
    "v": DDPMPath(ScheduleSettings(prediction_type="v_prediction")),
    "sample, zero SNR": DDPMPath(ScheduleSettings(prediction_type="sample", rescale_betas_zero_snr=True)),
    "v, zero SNR": DDPMPath(ScheduleSettings(prediction_type="v_prediction", rescale_betas_zero_snr=True)),
    "flow": FlowPath(FlowSettings(shift=3.0)),
}
PROMPT = Conditioning(torch.zeros(6, 1, 1))


def as_prediction(x_0: Tensor, noisy: Tensor, timesteps: Tensor, path: ProbabilityPath) -> Tensor:
    """What a network predicts that takes x_0 for the clean latents."""
    noise = (noisy - path.alpha(timesteps) * x_0) / path.sigma(timesteps)
    return path.target(x_0, noise, timesteps)


def deviation(path: ProbabilityPath, timesteps: Tensor) -> Tensor:
    """Of x_t, for x_0 with mean MEAN and deviation STD."""
    return ((path.alpha(timesteps) * STD) ** 2 + path.sigma(timesteps) ** 2).sqrt()


def teacher_of(path: ProbabilityPath, shift: float = 0.0) -> Denoiser:
    """The exact denoiser E[x_0 | x_t] of the Gaussian; a prompt, if any, moves the mean by its embedding."""

    def teacher(
        latents: Tensor, timesteps: Tensor, conditioning: Conditioning, *, step: Step | None = None
    ) -> Tensor:
        alpha, mean = path.alpha(timesteps), MEAN + conditioning.prompt_embeds.view(-1, 1, 1, 1)
        gain = alpha * STD**2 / deviation(path, timesteps) ** 2
        return as_prediction(mean + gain * (latents - alpha * mean), latents, timesteps, path)

    return teacher


def exact_student(path: ProbabilityPath) -> Denoiser:
    """The network whose consistency function is the exact one: along a trajectory (x_t - mean_t)/std_t is constant."""

    def student(
        latents: Tensor, timesteps: Tensor, conditioning: Conditioning, *, step: Step | None = None
    ) -> Tensor:
        end = torch.zeros_like(timesteps)
        scale = deviation(path, end) / deviation(path, timesteps)
        wanted = path.alpha(end) * MEAN + scale * (latents - path.alpha(timesteps) * MEAN)
        c_skip, c_out = boundary_scalings(path, timesteps)
        x_0 = torch.where(c_out > 0, (wanted - c_skip * latents) / c_out.clamp(min=1e-9), 0.0)
        return as_prediction(x_0, latents, timesteps.clamp(min=1), path)

    return student


def draws() -> tuple[Tensor, Tensor, Tensor]:
    """Latents, noise and positions of six samples, the last one in the last step of the solver."""
    generator = torch.Generator().manual_seed(0)
    latents = MEAN + STD * torch.randn(6, 4, 8, 8, generator=generator)
    noise = torch.randn(6, 4, 8, 8, generator=generator)
    return latents, noise, torch.tensor([0.0, 0.1, 0.3, 0.61, 0.8, 0.9999])


@pytest.mark.parametrize("name", PATHS)
def test_the_consistency_function_is_the_identity_without_noise(name: str) -> None:
    path, latents = PATHS[name], draws()[0]
    zeros = torch.zeros(6, dtype=torch.float32 if name == "flow" else torch.long)

    def nonsense(
        x: Tensor, timesteps: Tensor, conditioning: Conditioning, *, step: Step | None = None
    ) -> Tensor:
        return torch.full_like(x, 1e3)

    assert torch.equal(consistency_output(nonsense, latents, zeros, PROMPT, path), latents)


def test_the_scalings_are_those_of_diffusers() -> None:
    path, scheduler = PATHS["epsilon"], LCMScheduler()
    timesteps = torch.tensor([0, 1, 19, 259, 999])
    found = [
        torch.stack(each).flatten().tolist() for each in zip(*boundary_scalings(path, timesteps), strict=True)
    ]
    theirs = [scheduler.get_scalings_for_boundary_condition_discrete(int(t)) for t in timesteps]
    assert found == [pytest.approx(each) for each in theirs]


def test_the_solvers_timesteps_contain_those_of_diffusers_sampler() -> None:
    positions = (torch.arange(50) + 0.5) / 50
    start, end = solver_timesteps(positions, PATHS["epsilon"], 50)
    assert start.tolist() == list(range(19, 1000, 20)) and end.tolist() == [0, *range(19, 980, 20)]
    scheduler = LCMScheduler()
    for num_steps in (1, 2, 4, 7, 50):
        scheduler.set_timesteps(num_steps)
        assert set(scheduler.timesteps.tolist()) <= set(start.tolist())
    assert solver_timesteps(torch.tensor([1.0]), PATHS["epsilon"], 50)[0].tolist() == [
        999
    ]  # 0.99999999 in float32
    start, end = solver_timesteps(positions, PATHS["flow"], 50)
    assert torch.allclose(start, torch.arange(1, 51) * 20.0) and torch.allclose(start - 20, end)


@pytest.mark.parametrize("name", PATHS)
def test_a_step_of_the_solver_equals_a_computation_by_hand(name: str) -> None:
    """In float64, from alpha and sigma alone; with guidance the teacher's Gaussian has its mean moved."""
    path, (latents, noise, positions) = PATHS[name], draws()
    start, end = solver_timesteps(positions, path, 50)
    noisy = path.add_noise(latents, noise, start)
    prompt = Conditioning(torch.full((6, 1, 1), 0.2))
    scales = torch.tensor([1.0, 2.0, 3.0, 5.0, 7.0, 2.5])
    guided = guided_teacher(teacher_of(path), PROMPT, scales)
    x_0 = path.to_x_0(guided(noisy, start, prompt), noisy, start)
    found = solver_step(x_0, noisy, start, end, path)

    for row, scale in enumerate(scales.tolist()):
        (a, s), (b, r) = ((float(path.alpha(t)[row]), float(path.sigma(t)[row])) for t in (start, end))
        x = noisy[row].double()
        gain = a * STD**2 / (a**2 * STD**2 + s**2)
        plain, asked = (m + gain * (x - a * m) for m in (MEAN, MEAN + 0.2))
        clean = plain + scale * (asked - plain)
        by_hand = b * clean + r * (x - a * clean) / s
        assert torch.allclose(found[row].double(), by_hand, atol=3e-5), row


@pytest.mark.parametrize("name", PATHS)
def test_the_exact_student_has_no_loss_but_the_solvers_error(name: str) -> None:
    """The error of one first-order step falls with the square of its length: here with ten times as many steps."""
    path, (latents, noise, positions) = PATHS[name], draws()
    networks = Networks(exact_student(path), exact_student(path), teacher_of(path))
    positions = positions[1:5].repeat(2)[:6]

    def loss(num_steps: int) -> float:
        settings = DistillSettings(num_solver_steps=num_steps, huber_c=1e-8)
        return float(consistency_loss(networks, latents, noise, positions, PROMPT, path, settings).mean())

    assert loss(500) < 1e-4 and loss(500) < 0.05 * loss(50)
    wrong = Networks(teacher_of(path), exact_student(path), teacher_of(path))
    settings = DistillSettings(huber_c=1e-8)
    assert consistency_loss(wrong, latents, noise, positions, PROMPT, path, settings).mean() > 20 * loss(50)


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("num_steps", [1, 4])
def test_few_steps_of_the_exact_student_sample_the_data(name: str, num_steps: int) -> None:
    """By the sampler `lcm`, whose step ends at no noise in one call, and adds new noise before the next."""
    path = PATHS[name]
    scheduler = make_scheduler("lcm", few_step_config(path.scheduler_config(), 50))
    noise = torch.randn(1, 4, 64, 64, generator=torch.Generator().manual_seed(0))
    generators = [torch.Generator().manual_seed(1)]
    steps = denoise(
        exact_student(path),
        plan_sampling(scheduler, num_steps),
        noise,
        PROMPT.select([0]),
        generators=generators,
    )
    latents = list(steps)[-1][1]
    assert float(latents.mean()) == pytest.approx(MEAN, abs=0.03)
    assert float(latents.std()) == pytest.approx(STD, rel=0.03)


def test_without_a_teacher_the_trajectory_is_the_samples_own() -> None:
    """A network that knows the sample has no loss: both levels are of the same sample and noise."""
    path, (latents, noise, positions) = PATHS["v"], draws()

    def knowing(
        x: Tensor, timesteps: Tensor, conditioning: Conditioning, *, step: Step | None = None
    ) -> Tensor:
        c_skip, c_out = boundary_scalings(path, timesteps)
        x_0 = torch.where(c_out > 0, (latents - c_skip * x) / c_out.clamp(min=1e-9), 0.0)
        return as_prediction(x_0, x, timesteps, path)

    settings = DistillSettings(trajectory="data")
    found = consistency_loss(
        Networks(knowing, knowing, None), latents, noise, positions, PROMPT, path, settings
    )
    assert found[1:].max() < 1e-6 < found[0]  # at timestep 0 there is noise left, and f is the identity


def test_guidance_scales_are_uniform_and_independent_of_the_timestep() -> None:
    positions = torch.rand(20_000, generator=torch.Generator().manual_seed(0))
    scales = guidance_scales(positions, (2.0, 6.0), 50)
    assert 2 <= scales.min() < 2.05 and 5.95 < scales.max() <= 6
    assert float(scales.mean()) == pytest.approx(4, abs=0.03)
    start = solver_timesteps(positions, PATHS["epsilon"], 50)[0].float()
    assert abs(torch.corrcoef(torch.stack([start, scales]))[0, 1]) < 0.03
    assert guidance_scales(positions, (3.0, 3.0), 50).unique().tolist() == [3.0]


def test_paths_without_a_sampler_for_few_steps_are_refused() -> None:
    for path in (EDMPath(), FlowPath(FlowSettings(prediction_type="sample"))):
        with pytest.raises(UserError, match="use a base on path ddpm"):
            check_distillable(path, "model")
    with pytest.raises(UserError, match="learned a variance"):
        check_distillable(DDPMPath(ScheduleSettings(learn_variance=True)), "model")
    for path in PATHS.values():
        check_distillable(path, "model")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"guidance_scale": (6.0, 2.0)}, "two rising ones"),
        ({"guidance_scale": (0.5, 2.0)}, "two rising ones"),
        ({"trajectory": "data", "embed_guidance": True}, "has no guidance"),
    ],
)
def test_wrong_settings_are_refused(given: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        DistillSettings(**given)

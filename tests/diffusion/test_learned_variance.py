"""Improved DDPM's learned variance, on Gaussian data, for which the reverse steps and their bound are known exactly."""

import math
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler
from torch import Tensor

from ldm.diffusion.learned_variance import ReverseSteps
from ldm.diffusion.objective import ObjectiveSettings, diffusion_loss
from ldm.diffusion.path import DDPMPath, ScheduleSettings
from ldm.diffusion.sampling import denoise, plan_sampling
from ldm.diffusion.schedulers import make_scheduler, resolve_scheduler, trained_path
from ldm.types import Conditioning, Step

MEAN, SPREAD = 0.4, 0.6
NO_PROMPT = Conditioning(torch.zeros(1, 1, 1))
PATH = DDPMPath(ScheduleSettings(learn_variance=True))


class ExactDenoiser:
    """The mean and the variance of the reverse steps for x_0 ~ N(MEAN, SPREAD^2); the steps may be strided."""

    def __init__(self, timesteps: list[int]) -> None:
        levels = PATH.alphas_cumprod.double()
        following = [*timesteps[1:], None]
        self.before = {
            t: 1.0 if after is None else float(levels[after])
            for t, after in zip(timesteps, following, strict=True)
        }
        self.levels = levels

    def __call__(
        self, latents: Tensor, timesteps: Tensor, conditioning: Conditioning, *, step: Step | None = None
    ) -> Tensor:
        t = int(timesteps[0])
        level, before = float(self.levels[t]), self.before[t]
        variance = level * SPREAD**2 + 1 - level
        x_0 = MEAN + level**0.5 * SPREAD**2 / variance * (latents - level**0.5 * MEAN)
        noise = (latents - level**0.5 * x_0) / (1 - level) ** 0.5
        beta = 1 - level / before
        smallest = max(beta * (1 - before) / (1 - level), 1e-20)
        gain = before**0.5 * beta / (1 - level)
        exact = smallest + gain**2 * SPREAD**2 * (1 - level) / variance  # of x_{t-1} given x_t
        share = (math.log(exact) - math.log(smallest)) / (math.log(beta) - math.log(smallest))
        return torch.cat([noise, torch.full_like(noise, 2 * share - 1)], dim=1)


def final(name: str, num_steps: int) -> Tensor:
    plan = plan_sampling(make_scheduler(name, PATH.scheduler_config()), num_steps)
    noise = torch.randn(1, 4, 64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    denoiser = ExactDenoiser([int(t) for t in plan.timesteps])
    generators = [torch.Generator().manual_seed(1)]
    (*_, (_, latents)) = denoise(denoiser, plan, noise, NO_PROMPT, generators=generators)
    return latents


def test_few_steps_with_the_learned_variance_have_the_datas_deviation() -> None:
    """Strided steps too; the last one goes to the mean of x_0. Samplers that know only the mean ignore the rest."""
    latents = final("ddpm", 20)
    assert float(latents.mean()) == pytest.approx(MEAN, abs=0.03)
    assert float(latents.std()) == pytest.approx(SPREAD, rel=0.03)
    for name in ("ddim", "dpmpp_2m"):
        assert float(final(name, 20).std()) == pytest.approx(SPREAD, rel=0.1), name


def test_the_bound_is_the_entropy_of_gaussian_data_with_the_exact_reverse_steps() -> None:
    """The sum of all terms, with the prior's, is -log p(x_0), whose mean is the differential entropy."""
    path = DDPMPath(
        ScheduleSettings(num_train_timesteps=50, beta_start=0.01, beta_end=0.3, beta_schedule="linear")
    )
    steps = ReverseSteps(path.alphas_cumprod)
    levels = path.alphas_cumprod.double()
    generator = torch.Generator().manual_seed(0)
    x_0 = MEAN + SPREAD * torch.randn(4000, 1, 2, 2, generator=generator, dtype=torch.float64)
    total = torch.zeros((), dtype=torch.float64)
    for t in range(50):
        at = torch.full((4000,), t)
        noise = torch.randn(x_0.shape, generator=generator, dtype=torch.float64)
        level, before = float(levels[t]), float(levels[t - 1]) if t else 1.0
        x_t = level**0.5 * x_0 + (1 - level) ** 0.5 * noise
        variance = level * SPREAD**2 + 1 - level
        predicted = MEAN + level**0.5 * SPREAD**2 / variance * (x_t - level**0.5 * MEAN)
        beta = 1 - level / before
        exact = (
            beta * (1 - before) / (1 - level)
            + float(steps.of_x_0[t]) ** 2 * SPREAD**2 * (1 - level) / variance
        )
        smallest, largest = float(steps.smallest[t]), float(steps.largest[t])
        v = 2 * (math.log(exact) - smallest) / (largest - smallest) - 1 if largest > smallest else 0.0
        total += steps.bound(x_0, x_t, predicted, torch.full_like(x_0, v), at).mean()
    level = float(levels[-1])
    last = level * SPREAD**2 + 1 - level  # the second moments of q(x_T), against the prior N(0, 1)
    prior = 0.5 * ((1 - level) + level * (SPREAD**2 + MEAN**2) - 1 - math.log(1 - level)) / math.log(2)
    assert last == pytest.approx(1, abs=0.01)
    entropy = 0.5 * math.log2(2 * math.pi * math.e * SPREAD**2)
    assert float(total) + prior == pytest.approx(entropy, abs=0.03)


def test_the_exact_variance_has_the_least_bound() -> None:
    steps, t = ReverseSteps(PATH.alphas_cumprod), 300
    generator = torch.Generator().manual_seed(0)
    x_0 = MEAN + SPREAD * torch.randn(4000, 1, 2, 2, generator=generator, dtype=torch.float64)
    noise = torch.randn(x_0.shape, generator=generator, dtype=torch.float64)
    at = torch.full((4000,), t)
    x_t = PATH.add_noise(x_0, noise, at)
    exact = ExactDenoiser([t, t - 1])(x_t, at, NO_PROMPT)
    predicted, v = PATH.to_x_0(exact[:, :1], x_t, at), exact[:, 1:]
    least, *others = (
        float(steps.bound(x_0, x_t, predicted, v + shift, at).mean()) for shift in (0.0, -0.5, 0.5)
    )
    assert all(least < other for other in others)


def test_only_the_variance_learns_from_the_bound() -> None:
    """The gradient of the mean is that of the plain loss."""
    x_0, noise = torch.randn(2, 3, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    output = torch.randn(3, 4, 4, 4, generator=torch.Generator().manual_seed(1)).requires_grad_()
    timesteps = torch.tensor([0, 10, 900])

    def denoiser(latents: Tensor, timesteps: Tensor, conditioning: Conditioning, **_: Any) -> Tensor:
        return output

    settings = ObjectiveSettings()
    loss = diffusion_loss(denoiser, x_0, noise, timesteps, NO_PROMPT, PATH, settings)
    (gradient,) = torch.autograd.grad(loss.sum(), output)
    mean, v = gradient.chunk(2, dim=1)
    torch.testing.assert_close(mean, 2 * (output.detach()[:, :2] - noise) / 32)
    assert bool((v.abs().amax(dim=(1, 2, 3)) > 0).all())


def test_variances_lie_where_diffusers_puts_them() -> None:
    config = PATH.scheduler_config()
    scheduler = DDPMScheduler.from_config(config)
    assert scheduler.config.variance_type == "learned_range"
    scheduler.set_timesteps(1000)
    v, at = torch.tensor([0.3]), 400
    ours = ReverseSteps(PATH.alphas_cumprod).log_variance(v.view(1, 1, 1, 1), torch.tensor([at])).exp()
    beta = float(1 - PATH.alphas_cumprod[at] / PATH.alphas_cumprod[at - 1])
    smallest = beta * float((1 - PATH.alphas_cumprod[at - 1]) / (1 - PATH.alphas_cumprod[at]))
    by_hand = math.exp(0.65 * math.log(beta) + 0.35 * math.log(smallest))
    assert float(ours) == pytest.approx(by_hand, rel=1e-3)


def test_a_saved_config_says_that_the_variance_is_learned() -> None:
    config = PATH.scheduler_config()
    path = trained_path(config, "m")
    assert isinstance(path, DDPMPath) and path.settings == PATH.settings
    assert resolve_scheduler("model", config, None) == ("ddpm", False)
    plain = DDPMPath(ScheduleSettings())
    assert plain.reverse_steps is None and "variance_type" not in plain.scheduler_config()

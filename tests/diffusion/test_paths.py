"""The objective and the sampling loop work with paths other than DDPM's: a rectified flow, and EDM's.

These paths are only defined in this file and registered in `PATHS`. The network is exact: for data
x_0 ~ N(MEAN, SPREAD^2) it predicts the mean of the target given x_t. Then z = (x_t - alpha MEAN) / deviation is
constant along the probability-flow ODE, so every sampler's error is known.
"""

import math
from collections.abc import Sequence
from typing import Any, Self

import pytest
import torch
from diffusers import (
    EDMDPMSolverMultistepScheduler,
    EDMEulerScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
)
from torch import Tensor

from ldm.diffusion import path as paths
from ldm.diffusion.objective import ObjectiveSettings, diffusion_loss, timestep_at
from ldm.diffusion.path import DDPMPath, ProbabilityPath, ScheduleSettings, path_of_scheduler
from ldm.diffusion.sampling import denoise, plan_sampling
from ldm.errors import UserError
from ldm.types import Conditioning, Step

MEAN, SPREAD = 0.4, 0.6
NO_PROMPT = Conditioning(torch.zeros(1, 1, 1))


class FlowPath(ProbabilityPath):
    """Rectified flow (Liu et al. 2022): x_t = (1 - t) x_0 + t noise; the network's time input is 1000 t."""

    prediction_type = "flow_prediction"

    def timesteps_at(self, position: Tensor) -> Tensor:
        return 1000 * position

    def tenth(self, timesteps: Tensor) -> Tensor:
        return (timesteps / 100).long().clamp(max=9)

    def alpha(self, timesteps: Tensor) -> Tensor:
        return 1 - self.sigma(timesteps)

    def sigma(self, timesteps: Tensor) -> Tensor:
        return (timesteps / 1000).view(-1, 1, 1, 1)

    def target(self, x_0: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        return noise - x_0

    def to_x_0(self, model_pred: Tensor, noisy_latents: Tensor, timesteps: Tensor) -> Tensor:
        return noisy_latents - self.sigma(timesteps) * model_pred

    def scheduler_config(self) -> dict[str, Any]:
        return {"_class_name": "FlowMatchEulerDiscreteScheduler"}

    @classmethod
    def of_scheduler(cls, scheduler: Any) -> Self | None:
        return cls() if type(scheduler).__name__.startswith("FlowMatch") else None

    def noise_to_signal(self, timesteps: Sequence[float]) -> list[float]:
        return [t / max(1000 - t, 1e-9) for t in timesteps]

    def unscale(self, model_input: Tensor, timesteps: Tensor) -> Tensor:
        return model_input


class EDMPath(ProbabilityPath):
    """Karras et al. 2022, Eq. 7 and 8: x = x_0 + sigma noise; the time input is log(sigma) / 4, the prediction F."""

    prediction_type = "edm"

    def __init__(self, sigma_data: float = 0.5) -> None:
        self.sigma_data = sigma_data

    def timesteps_at(self, position: Tensor) -> Tensor:
        return (-1.2 + 1.2 * torch.special.ndtri(position)) / 4  # their log-normal choice

    def tenth(self, timesteps: Tensor) -> Tensor:
        return (10 * torch.special.ndtr((4 * timesteps + 1.2) / 1.2)).long().clamp(0, 9)

    def alpha(self, timesteps: Tensor) -> Tensor:
        return torch.ones_like(timesteps).view(-1, 1, 1, 1)

    def sigma(self, timesteps: Tensor) -> Tensor:
        return (4 * timesteps).exp().view(-1, 1, 1, 1)

    def _scales(self, timesteps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        sigma = self.sigma(timesteps)
        total = sigma**2 + self.sigma_data**2
        return self.sigma_data**2 / total, sigma * self.sigma_data / total.sqrt(), 1 / total.sqrt()

    def target(self, x_0: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        c_skip, c_out, _ = self._scales(timesteps)
        return (x_0 - c_skip * self.add_noise(x_0, noise, timesteps)) / c_out

    def to_x_0(self, model_pred: Tensor, noisy_latents: Tensor, timesteps: Tensor) -> Tensor:
        c_skip, c_out, _ = self._scales(timesteps)
        return c_skip * noisy_latents + c_out * model_pred

    def scale_model_input(self, noisy_latents: Tensor, timesteps: Tensor) -> Tensor:
        return noisy_latents * self._scales(timesteps)[2]

    def unscale(self, model_input: Tensor, timesteps: Tensor) -> Tensor:
        return model_input / self._scales(timesteps)[2]

    def scheduler_config(self) -> dict[str, Any]:
        return {"_class_name": "EDMEulerScheduler", "sigma_data": self.sigma_data}

    @classmethod
    def of_scheduler(cls, scheduler: Any) -> Self | None:
        return cls() if type(scheduler).__name__.startswith("EDM") else None

    def noise_to_signal(self, timesteps: Sequence[float]) -> list[float]:
        return [math.exp(4 * t) for t in timesteps]


PATHS = [FlowPath(), EDMPath()]


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "PATHS", [*paths.PATHS, FlowPath, EDMPath])


class ExactDenoiser:
    """The mean of the target given x_t, for independent Gaussian data."""

    def __init__(self, path: Any, factor: float = 1.0) -> None:
        self.path, self.factor = path, factor

    def __call__(
        self, latents: Tensor, timesteps: Tensor, conditioning: Conditioning, *, step: Step | None = None
    ) -> Tensor:
        at = timesteps.double()
        alpha, sigma = self.path.alpha(at), self.path.sigma(at)
        x_t = self.path.unscale(latents, at)
        x_0 = MEAN + alpha * SPREAD**2 / (alpha**2 * SPREAD**2 + sigma**2) * (x_t - alpha * MEAN)
        output: Tensor = self.path.target(x_0, (x_t - alpha * x_0) / sigma, at)
        return self.factor * output


def error(scheduler: Any, num_inference_steps: int) -> float:
    """Distance of the sampled latents from the exact solution of the ODE."""
    plan = plan_sampling(scheduler, num_inference_steps)
    noise = torch.randn(1, 4, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    path: Any = path_of_scheduler(scheduler)
    first = torch.tensor([plan.steps[0].timestep], dtype=torch.float64)
    x_t = noise * getattr(plan.prototype, "init_noise_sigma", 1.0)
    alpha, sigma = path.alpha(first), path.sigma(first)
    z = (x_t - alpha * MEAN) / (alpha**2 * SPREAD**2 + sigma**2).sqrt()
    (*_, (_, latents)) = denoise(ExactDenoiser(path), plan, noise, NO_PROMPT)
    return float((latents - (MEAN + SPREAD * z)).abs().max())


EDM_SIGMAS = {"sigma_min": 0.002, "sigma_max": 80.0, "sigma_data": 0.5}


@pytest.mark.parametrize(
    ("scheduler", "order"),
    [
        (FlowMatchEulerDiscreteScheduler(), 1),
        (FlowMatchEulerDiscreteScheduler(shift=3.0), 1),
        (FlowMatchHeunDiscreteScheduler(), 2),
        (EDMEulerScheduler(**EDM_SIGMAS), 1),
        (EDMDPMSolverMultistepScheduler(**EDM_SIGMAS, final_sigmas_type="zero"), 2),
    ],
    ids=["flow euler", "flow euler, shifted", "flow heun", "edm euler", "edm dpm++ 2m"],
)
def test_a_sampler_converges_with_its_order(scheduler: Any, order: int) -> None:
    coarse, fine = error(scheduler, 40), error(scheduler, 80)
    assert fine < 0.1
    assert math.log2(coarse / fine) == pytest.approx(order, abs=0.35)


def least_loss(path: Any, timesteps: Tensor) -> Tensor:
    """The variance of the target given x_t: that of x_0, scaled by the target's dependence on x_0."""
    alpha, sigma = path.alpha(timesteps), path.sigma(timesteps)
    one, none = torch.ones_like(alpha), torch.zeros_like(alpha)
    change = path.target(one, -alpha / sigma, timesteps) - path.target(none, none, timesteps)
    return change**2 * SPREAD**2 * sigma**2 / (alpha**2 * SPREAD**2 + sigma**2)


# EDM's target depends on the input only if its assumed standard deviation differs from the data's
@pytest.mark.parametrize("path", [FlowPath(), EDMPath(sigma_data=2.0)], ids=["flow", "edm"])
def test_the_objective_is_lowest_at_the_exact_denoiser(path: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    shape = (512, 1, 4, 4)
    latents = MEAN + SPREAD * torch.randn(shape, generator=generator, dtype=torch.float64)
    noise = torch.randn(shape, generator=generator, dtype=torch.float64)
    settings = ObjectiveSettings()
    timesteps = timestep_at(torch.rand(512, generator=generator, dtype=torch.float64), path, settings)
    losses = [
        diffusion_loss(ExactDenoiser(path, factor), latents, noise, timesteps, NO_PROMPT, path, settings)
        for factor in (0.9, 1.0, 1.1)
    ]
    low, exact, high = (float(each.mean()) for each in losses)
    assert exact < low and exact < high
    assert exact == pytest.approx(float(least_loss(path, timesteps).mean()), rel=0.05)
    tenths = path.tenth(timesteps)
    assert tenths.min() == 0 and tenths.max() == 9


DDPM: list[ProbabilityPath] = [
    DDPMPath(ScheduleSettings(prediction_type=each)) for each in ("epsilon", "v_prediction", "sample")
]


@pytest.mark.parametrize("path", [*PATHS, *DDPM], ids=["flow", "edm", "epsilon", "v_prediction", "sample"])
def test_a_target_converts_back_to_its_clean_latents(path: ProbabilityPath) -> None:
    x_0, noise = torch.randn(2, 5, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    timesteps = path.timesteps_at(torch.linspace(0.05, 0.95, 5))
    target = path.target(x_0, noise, timesteps)
    found = path.to_x_0(target, path.add_noise(x_0, noise, timesteps), timesteps)
    torch.testing.assert_close(found, x_0, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_ddpm_has_float_levels_between_its_rows(prediction_type: Any) -> None:
    path = DDPMPath(ScheduleSettings(prediction_type=prediction_type))
    rows = torch.tensor([3, 500, 998])
    torch.testing.assert_close(path.alpha(rows.double()), path.alpha(rows).double(), rtol=1e-5, atol=0)
    between = path.sigma(rows + 0.5)
    assert (path.sigma(rows) < between).all() and (between < path.sigma(rows + 1)).all()
    ratio = (between / path.alpha(rows + 0.5)).flatten().tolist()
    assert path.noise_to_signal((rows + 0.5).tolist()) == pytest.approx(ratio, rel=1e-4)


def test_a_weighting_unsupported_for_a_path_is_rejected() -> None:
    latents = torch.zeros(1, 1, 4, 4)
    settings = ObjectiveSettings(weighting="min_snr")
    with pytest.raises(UserError, match="'min_snr' with prediction type 'flow_prediction': use none"):
        diffusion_loss(
            ExactDenoiser(PATHS[0]), latents, latents, torch.tensor([500.0]), NO_PROMPT, PATHS[0], settings
        )

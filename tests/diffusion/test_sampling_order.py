"""The samplers against an exact solution.

For data x_0 ~ N(MEAN, SPREAD^2) the optimal denoiser is known, and so is the solution of the probability-flow
ODE: z = (x_t - alpha MEAN) / sqrt(alpha^2 SPREAD^2 + sigma^2) is constant along it. The error of a sampler is
therefore known exactly, and must decrease with the sampler's order when the number of steps is doubled.
"""

import math
from dataclasses import dataclass, field

import diffusers  # noqa: F401  (here, so that no test's time includes it)
import pytest
import torch
from torch import Tensor

from ldm.diffusion.sampling import denoise, plan_sampling
from ldm.diffusion.scheduler_names import SCHEDULERS
from ldm.diffusion.schedulers import make_scheduler
from ldm.types import Conditioning, Step

# Two of diffusers' schedulers pass tensors to numpy in a way that numpy 2 deprecates.
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept context:DeprecationWarning"),
    pytest.mark.filterwarnings(
        "ignore:Should have t[ab][<>]=t[01] but got:UserWarning"
    ),  # torchsde's rounding
]

MEAN = 0.3
SPREAD = torch.tensor([0.25, 0.5, 1.0, 2.0], dtype=torch.float64).view(1, 4, 1, 1)
CONFIG = {
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "timestep_spacing": "trailing",
}
NO_PROMPT = Conditioning(torch.zeros(1, 1, 1))


@dataclass
class GaussianDenoiser:
    """The exact denoiser for Gaussian data, in float64; it records the input of each call."""

    alphas_cumprod: Tensor
    prediction_type: str
    calls: list[tuple[float, Tensor]] = field(default_factory=list)

    def __call__(
        self, latents: Tensor, timesteps: Tensor, conditioning: Conditioning, *, step: Step | None = None
    ) -> Tensor:
        assert step is not None
        self.calls.append((step.timestep, latents))
        alpha, sigma = self.level(step.timestep)
        gain = alpha * SPREAD**2 / (alpha**2 * SPREAD**2 + sigma**2)
        x_0 = MEAN + gain * (latents - alpha * MEAN)
        noise = (latents - alpha * x_0) / sigma
        return {"epsilon": noise, "sample": x_0, "v_prediction": alpha * noise - sigma * x_0}[
            self.prediction_type
        ]

    def level(self, timestep: float) -> tuple[float, float]:
        """alpha and sigma; log(sigma / alpha) is linear between training timesteps, as in kdpm2."""
        below, part = int(timestep), timestep - int(timestep)
        if part == 0:
            square = float(self.alphas_cumprod[below])
            return square**0.5, (1 - square) ** 0.5
        a, b = (float(self.alphas_cumprod[i]) for i in (below, below + 1))
        log_ratio = (1 - part) * math.log((1 - a) / a) / 2 + part * math.log((1 - b) / b) / 2
        alpha = (1 + math.exp(2 * log_ratio)) ** -0.5
        return alpha, alpha * math.exp(log_ratio)

    def standardised(self, call: int) -> Tensor:
        """z of one call's input; -1 is the last call."""
        timestep, latents = self.calls[call]
        alpha, sigma = self.level(timestep)
        return (latents - alpha * MEAN) / (alpha**2 * SPREAD**2 + sigma**2) ** 0.5

    def last_call_at(self, timestep: float) -> int:
        """Two-call steps pass a first estimate first; the last call at a timestep receives the actual state."""
        return max(i for i, (at, _) in enumerate(self.calls) if at == timestep)


def sample(
    name: str, num_inference_steps: int, config: dict[str, object], shape: tuple[int, ...] = (1, 4, 4, 4)
) -> tuple[GaussianDenoiser, Tensor]:
    """Run a sampler on Gaussian data; returns the denoiser with its calls, and the final latents."""
    scheduler = make_scheduler(name, config)
    denoiser = GaussianDenoiser(scheduler.alphas_cumprod.clone(), str(config["prediction_type"]))
    noise = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    generators = [torch.Generator().manual_seed(1)]
    latents = noise
    for _, latents in denoise(  # noqa: B007
        denoiser, plan_sampling(scheduler, num_inference_steps), noise, NO_PROMPT, generators=generators
    ):
        pass
    return denoiser, latents


def ode_error(name: str, num_inference_steps: int, config: dict[str, object]) -> float:
    """The drift of z when the sampler reaches timestep 49 (50 for dpmpp_2s), before the last step.

    The last step goes to sigma = 0, which is a first-order step in every sampler here.
    """
    denoiser, _ = sample(name, num_inference_steps, config)
    end = 50.0 if name == "dpmpp_2s" else 49.0
    drift = denoiser.standardised(denoiser.last_call_at(end)) - denoiser.standardised(0)
    return float(drift.abs().max())


def order_of(name: str, prediction_type: str) -> float:
    """The measured order: log2 of the ratio of the errors with 20 and 40 steps."""
    # dpmpp_2s spaces its timesteps evenly from 0 to the last one, regardless of the spacing setting.
    levels = {"num_train_timesteps": 1001} if name == "dpmpp_2s" else {}
    config = {**CONFIG, **levels, "prediction_type": prediction_type}
    return math.log2(ode_error(name, 20, config) / ode_error(name, 40, config))


PREDICTION_TYPES = ["epsilon", "v_prediction", "sample"]
DETERMINISTIC = [
    (name, kind)
    for name, entry in SCHEDULERS.items()
    for kind in PREDICTION_TYPES
    if not entry.stochastic and (entry.reads_sample or kind != "sample")
]
STOCHASTIC = [
    name
    for name, entry in SCHEDULERS.items()
    if entry.stochastic and entry.available and not entry.for_few_steps
]
STOCHASTIC_AT_ZERO_SNR = ["ddpm", "euler_a", "dpmpp_2m_sde"]
FIRST_ORDER = {
    *((name, kind) for name in ("ddim", "euler") for kind in PREDICTION_TYPES),
    # It combines predictions from several noise levels as if they were all epsilon.
    ("pndm", "v_prediction"),
}
ZERO_SNR = {**CONFIG, "rescale_betas_zero_snr": True}


@pytest.mark.parametrize(("name", "prediction_type"), DETERMINISTIC)
def test_error_falls_with_the_order_of_the_sampler(name: str, prediction_type: str) -> None:
    order = order_of(name, prediction_type)
    if (name, prediction_type) in FIRST_ORDER:
        assert 0.9 < order < 1.1
    else:
        assert order > 1.7


@pytest.mark.parametrize("prediction_type", ["v_prediction", "sample"])
@pytest.mark.parametrize(
    ("name", "least"), [("ddim", 0.9), ("euler", 0.9), ("dpmpp_2m", 1.7), ("unipc", 1.7)]
)
def test_zero_terminal_snr_keeps_the_order(name: str, least: float, prediction_type: str) -> None:
    config = {**ZERO_SNR, "prediction_type": prediction_type}
    coarse, fine = ode_error(name, 20, config), ode_error(name, 40, config)
    assert fine < 0.1
    assert math.log2(coarse / fine) > least


def spread_error(name: str, num_inference_steps: int, config: dict[str, object]) -> tuple[Tensor, Tensor]:
    """Relative errors of the mean and the standard deviation of 4096 samples, for each SPREAD."""
    _, latents = sample(name, num_inference_steps, config, shape=(1, 4, 64, 64))
    mean, spread = latents.mean(dim=(0, 2, 3)), latents.std(dim=(0, 2, 3))
    return (mean - MEAN) / SPREAD.flatten(), spread / SPREAD.flatten() - 1


@pytest.mark.parametrize(
    ("name", "path"),
    [(name, CONFIG) for name in STOCHASTIC] + [(name, ZERO_SNR) for name in STOCHASTIC_AT_ZERO_SNR],
)
def test_stochastic_samplers_reach_the_distribution_of_the_data(name: str, path: dict[str, object]) -> None:
    config = {**path, "prediction_type": "v_prediction"}
    mean, coarse = spread_error(name, 25, config)
    assert mean.abs().max() < 0.065  # four standard errors of the mean
    mean, fine = spread_error(name, 100, config)
    assert mean.abs().max() < 0.065
    assert fine.abs().max() < max(0.5 * float(coarse.abs().max()), 0.045)
    assert fine[1:].abs().max() < 0.09

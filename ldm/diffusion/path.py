"""The Gaussian path of DDPM (Ho et al. 2020) and what a prediction means on it.

    x_t = alpha_t x_0 + sigma_t noise,    alpha_t^2 + sigma_t^2 = 1,    alpha_t^2 = prod_s (1 - beta_s)

The same numbers, to the last bit, as diffusers' `DDPMScheduler` with the same settings; a test holds them equal.
"""

import math
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from ldm.config import Settings

PredictionType = Literal["epsilon", "v_prediction", "sample"]


class ScheduleSettings(Settings):
    """The noise schedule and the prediction type, under diffusers' names."""

    num_train_timesteps: int = Field(1000, ge=2, description="number of noise levels")
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"] = Field(
        "scaled_linear",
        description="linear (DDPM), scaled_linear (Stable Diffusion), squaredcos_cap_v2 (cosine)",
    )
    beta_start: float = Field(0.00085, gt=0, lt=1, description="first beta; unused by the cosine schedule")
    beta_end: float = Field(0.012, gt=0, lt=1, description="last beta; unused by the cosine schedule")
    prediction_type: PredictionType = Field("epsilon", description="what the denoiser is trained to predict")
    rescale_betas_zero_snr: bool = Field(
        False, description="shift the schedule so that the last level is pure noise (Lin et al. 2023)"
    )

    def model_post_init(self, _: Any) -> None:
        if self.rescale_betas_zero_snr and self.prediction_type == "epsilon":
            raise ValueError(
                "with zero terminal SNR (rescale_betas_zero_snr) use v_prediction or sample as prediction_type: "
                "epsilon says nothing there"
            )


class DDPMPath:
    """alpha_t, sigma_t and the signal-to-noise ratio of each training timestep."""

    def __init__(self, settings: ScheduleSettings) -> None:
        self.settings = settings
        betas = _betas(settings)
        if settings.rescale_betas_zero_snr:
            betas = _zero_terminal_snr(betas)
        self.alphas_cumprod = torch.cumprod(1.0 - betas, dim=0)
        self._levels: dict[torch.device, Tensor] = {}

    def alpha(self, timesteps: Tensor) -> Tensor:
        """alpha_t as [B, 1, 1, 1] for integer timesteps [B]."""
        return self._at(timesteps) ** 0.5

    def sigma(self, timesteps: Tensor) -> Tensor:
        """sigma_t as [B, 1, 1, 1] for integer timesteps [B]."""
        return (1 - self._at(timesteps)) ** 0.5

    def snr(self, timesteps: Tensor) -> Tensor:
        """alpha_t^2 / sigma_t^2 as [B]; 0 at a zero-SNR last level."""
        level = self._level(timesteps)
        return level / (1 - level)

    def add_noise(self, x_0: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """x_t = alpha_t x_0 + sigma_t noise, Eq. 4 of Ho et al. 2020. All [B, C, h, w]."""
        return self.alpha(timesteps) * x_0 + self.sigma(timesteps) * noise

    def target(self, x_0: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What the denoiser should answer: noise, x_0 or v = alpha noise - sigma x_0 (Salimans & Ho 2022)."""
        match self.settings.prediction_type:
            case "epsilon":
                return noise
            case "sample":
                return x_0
            case "v_prediction":
                return self.alpha(timesteps) * noise - self.sigma(timesteps) * x_0

    def scheduler_config(self) -> dict[str, Any]:
        """The `scheduler_config.json` of a diffusers scheduler that samples along this path."""
        settings = self.settings.model_dump()
        spacing = "trailing" if self.settings.rescale_betas_zero_snr else "leading"
        return {
            "_class_name": "DDIMScheduler",
            **settings,
            "clip_sample": False,
            "set_alpha_to_one": False,
            "steps_offset": 1,  # what Stable Diffusion has; trailing spacing does not read it
            "timestep_spacing": spacing,
        }

    def _at(self, timesteps: Tensor) -> Tensor:
        return self._level(timesteps).view(-1, 1, 1, 1)

    def _level(self, timesteps: Tensor) -> Tensor:
        """alpha_t^2 as [B]. The table is copied to a device once: a copy at each call would wait for the device."""
        device = timesteps.device
        if device not in self._levels:
            self._levels[device] = self.alphas_cumprod.to(device)
        return self._levels[device][timesteps]


def _betas(settings: ScheduleSettings) -> Tensor:
    count, start, end = settings.num_train_timesteps, settings.beta_start, settings.beta_end
    match settings.beta_schedule:
        case "linear":
            return torch.linspace(start, end, count, dtype=torch.float32)
        case "scaled_linear":
            return torch.linspace(start**0.5, end**0.5, count, dtype=torch.float32) ** 2
        case "squaredcos_cap_v2":
            return _cosine_betas(count)


def _cosine_betas(count: int, max_beta: float = 0.999) -> Tensor:
    """Eq. 17 of Nichol & Dhariwal 2021, with s = 0.008."""

    def alpha_bar(time: float) -> float:
        return math.cos((time + 0.008) / 1.008 * math.pi / 2) ** 2

    pairs = ((i / count, (i + 1) / count) for i in range(count))
    return torch.tensor(
        [min(1 - alpha_bar(b) / alpha_bar(a), max_beta) for a, b in pairs], dtype=torch.float32
    )


def _zero_terminal_snr(betas: Tensor) -> Tensor:
    """Algorithm 1 of Lin et al. 2023: shift and scale sqrt(alpha_bar) so that it ends at 0."""
    root = torch.cumprod(1.0 - betas, dim=0).sqrt()
    first, last = root[0].clone(), root[-1].clone()
    root = (root - last) * (first / (first - last))
    level = root**2
    alphas = torch.cat([level[:1], level[1:] / level[:-1]])
    return 1 - alphas

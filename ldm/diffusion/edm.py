"""EDM (Karras et al. 2022): noise is added to unscaled data, and the network is preconditioned.

    x = x_0 + sigma noise,    x_0 = c_skip x + c_out F(c_in x, log(sigma) / 4)

The network F has inputs and targets of unit variance for data of standard deviation `sigma_data`. The conventions are
those of diffusers' `EDMEulerScheduler`, which calls the prediction F "epsilon".
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from ldm.config import Settings
from ldm.diffusion.path import ProbabilityPath

SMALLEST_POSITION = 1e-7
"""Positions are kept this far from 0 and 1, where log(sigma) would be infinite."""


class EDMSettings(Settings):
    """The noise levels that a denoiser is trained at and sampled with. Defaults are those of Karras et al. 2022."""

    sigma_data: float | None = Field(
        None,
        gt=0,
        description="standard deviation of the scaled latents; default: measured on those in the cache",
    )
    log_mean: float = Field(-1.2, description="mean of log(sigma) in training")
    log_std: float = Field(1.2, gt=0, description="standard deviation of log(sigma) in training")
    sigma_min: float = Field(0.002, gt=0, description="lowest noise level of samplers")
    sigma_max: float = Field(80.0, gt=0, description="highest noise level of samplers")
    rho: float = Field(7.0, gt=0, description="above 1, samplers make more of their steps at low noise")

    @model_validator(mode="after")
    def _check_range(self) -> Self:
        if self.sigma_min >= self.sigma_max:
            raise ValueError(f"sigma_min = {self.sigma_min:g} must be below sigma_max = {self.sigma_max:g}")
        return self


class EDMPath(ProbabilityPath):
    """EDM's path. The loss without a weighting is that of Table 1 of Karras et al. 2022, 1 / c_out^2 in terms of x_0.

    Attributes:
        sigma_data: standard deviation of the data; 1 as long as it is not measured.
    """

    name: ClassVar[str] = "edm"
    settings: EDMSettings

    def __init__(self, settings: EDMSettings | None = None) -> None:
        self.settings = settings or EDMSettings()
        self.sigma_data = self.settings.sigma_data or 1.0
        self.prediction_type = "edm"

    @classmethod
    def of_config(cls, config: Mapping[str, Any]) -> Self | None:
        if not str(config.get("_class_name", "")).startswith("EDM"):
            return None
        known = {key: config[key] for key in ("sigma_min", "sigma_max", "rho") if key in config}
        return cls(EDMSettings(sigma_data=config.get("sigma_data", 0.5), **known))

    @classmethod
    def of_scheduler(cls, scheduler: Any) -> Self | None:
        return cls.of_config({**scheduler.config, "_class_name": type(scheduler).__name__})

    def measured(self, sigma_data: float) -> Self:
        """This path for data of another standard deviation."""
        return type(self)(self.settings.model_copy(update={"sigma_data": sigma_data}))

    def timesteps_at(self, position: Tensor) -> Tensor:
        """log(sigma) / 4 with normally distributed log(sigma), Table 1 of Karras et al. 2022."""
        inside = position.clamp(SMALLEST_POSITION, 1 - SMALLEST_POSITION)
        log_sigma: Tensor = self.settings.log_mean + self.settings.log_std * torch.special.ndtri(inside)
        return log_sigma / 4

    def tenth(self, timesteps: Tensor) -> Tensor:
        position: Tensor = torch.special.ndtr(
            (4 * timesteps - self.settings.log_mean) / self.settings.log_std
        )
        return (10 * position).long().clamp(0, 9)

    def alpha(self, timesteps: Tensor) -> Tensor:
        return torch.ones_like(timesteps).view(-1, 1, 1, 1)

    def sigma(self, timesteps: Tensor) -> Tensor:
        return (4 * timesteps).exp().view(-1, 1, 1, 1)

    def c_skip(self, timesteps: Tensor) -> Tensor:
        """sigma_data^2 / (sigma^2 + sigma_data^2), [B, 1, 1, 1]."""
        return self.sigma_data**2 * self.c_in(timesteps) ** 2

    def c_out(self, timesteps: Tensor) -> Tensor:
        """sigma sigma_data / sqrt(sigma^2 + sigma_data^2), [B, 1, 1, 1]."""
        return self.sigma(timesteps) * self.sigma_data * self.c_in(timesteps)

    def c_in(self, timesteps: Tensor) -> Tensor:
        """1 / sqrt(sigma^2 + sigma_data^2), [B, 1, 1, 1]."""
        return (self.sigma(timesteps) ** 2 + self.sigma_data**2).rsqrt()

    def target(self, x_0: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """(x_0 - c_skip x) / c_out = c_in (sigma x_0 / sigma_data - sigma_data noise), without cancellation."""
        scaled = self.sigma(timesteps) / self.sigma_data * x_0 - self.sigma_data * noise
        return self.c_in(timesteps) * scaled

    def to_x_0(self, model_pred: Tensor, noisy_latents: Tensor, timesteps: Tensor) -> Tensor:
        """c_skip x + c_out F, Eq. 7 of Karras et al. 2022."""
        return self.c_skip(timesteps) * noisy_latents + self.c_out(timesteps) * model_pred

    def scale_model_input(self, noisy_latents: Tensor, timesteps: Tensor) -> Tensor:
        """c_in x."""
        return self.c_in(timesteps) * noisy_latents

    def noise_to_signal(self, timesteps: Sequence[float]) -> list[float]:
        """sigma."""
        return [math.exp(4 * t) for t in timesteps]

    def scheduler_config(self) -> dict[str, Any]:
        """DPM++ 2M, which `StableDiffusionPipeline` can run."""
        name = "EDMDPMSolverMultistepScheduler"
        return {"_class_name": name, **self.scheduler_settings(name)}

    def scheduler_settings(self, class_name: str) -> dict[str, Any]:
        levels = {key: getattr(self.settings, key) for key in ("sigma_min", "sigma_max", "rho")}
        return {"prediction_type": "epsilon", "sigma_data": self.sigma_data, **levels}

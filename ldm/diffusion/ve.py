"""The variance exploding SDE of Song et al. 2021: noise is added to data that keeps its scale.

dx = sigma(t) sqrt(2 log(sigma_max / sigma_min)) dw        Eq. 9, 30
"""

from typing import ClassVar, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from ldm.config import Settings
from ldm.diffusion.score_sde import ScoreSDEPath, Table, rounded


class VESettings(Settings):
    """The variance exploding SDE."""

    sigma_min: float = Field(
        0.01, gt=0, description="noise at t = 0; the default is that of Song et al. 2021"
    )
    sigma_max: float = Field(
        50.0,
        gt=0,
        description="noise at t = 1: about the largest distance between the latents of two images (Song & Ermon 2020)",
    )

    @model_validator(mode="after")
    def _check_range(self) -> Self:
        if self.sigma_min >= self.sigma_max:
            raise ValueError(f"sigma_min = {self.sigma_min:g} must be below sigma_max = {self.sigma_max:g}")
        return self


class VEPath(ScoreSDEPath):
    """alpha = 1,    sigma(t) = sigma_min (sigma_max / sigma_min)^t        Eq. 31."""

    name: ClassVar[str] = "ve"
    scheduler_class: ClassVar[str] = "EulerDiscreteScheduler"
    smallest_time: ClassVar[float] = 0.0
    settings: VESettings

    def __init__(self, settings: VESettings | None = None) -> None:
        self.settings = settings or VESettings()

    def marginal(self, time: Tensor) -> tuple[Tensor, Tensor]:
        low, high = self.settings.sigma_min, self.settings.sigma_max
        return torch.ones_like(time), low * (high / low) ** time

    @classmethod
    def of_ratios(cls, log_ratios: Table) -> Self | None:
        low, high = (rounded(float(np.exp(log_ratios[end]))) for end in (0, -1))
        return cls(VESettings(sigma_min=low, sigma_max=high)) if low < high else None

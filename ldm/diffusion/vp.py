"""The variance preserving SDE of Song et al. 2021, the continuous limit of DDPM.

dx = -beta(t) x / 2 dt + sqrt(beta(t)) dw,    beta(t) = beta_min + t (beta_max - beta_min)        Eq. 11, 32
"""

from typing import ClassVar, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from ldm.config import Settings
from ldm.diffusion.score_sde import ScoreSDEPath, Table, rounded


class VPSettings(Settings):
    """The variance preserving SDE. Defaults are those of Song et al. 2021."""

    beta_min: float = Field(0.1, gt=0, description="beta at t = 0")
    beta_max: float = Field(
        20.0, gt=0, description="beta at t = 1; a higher one leaves less of the image there"
    )

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        if self.beta_min >= self.beta_max:
            raise ValueError(f"beta_min = {self.beta_min:g} must be below beta_max = {self.beta_max:g}")
        return self


class VPPath(ScoreSDEPath):
    """log alpha(t) = -t^2 (beta_max - beta_min) / 4 - t beta_min / 2,    sigma^2 = 1 - alpha^2        Eq. 33."""

    name: ClassVar[str] = "vp"
    scheduler_class: ClassVar[str] = "DDIMScheduler"
    smallest_time: ClassVar[float] = 1e-3  # the paper's, appendix C
    settings: VPSettings

    def __init__(self, settings: VPSettings | None = None) -> None:
        self.settings = settings or VPSettings()

    def marginal(self, time: Tensor) -> tuple[Tensor, Tensor]:
        low, high = self.settings.beta_min, self.settings.beta_max
        log_alpha = -(time**2) * (high - low) / 4 - time * low / 2
        return log_alpha.exp(), torch.sqrt(-torch.expm1(2 * log_alpha))

    @classmethod
    def of_ratios(cls, log_ratios: Table) -> Self | None:
        log_alphas = -0.5 * np.log1p(np.exp(2 * log_ratios))
        time = cls.smallest_time + (1 - cls.smallest_time) * np.linspace(0, 1, len(log_ratios))
        at = [len(time) // 2, len(time) - 1]
        coefficients = np.stack([-(time**2) / 4, -time / 2], axis=1)[at]
        difference, low = np.linalg.solve(coefficients, log_alphas[at])
        if difference <= 0 or low <= 0:
            return None
        return cls(VPSettings(beta_min=rounded(low), beta_max=rounded(low + difference)))

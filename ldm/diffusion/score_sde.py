"""Score-based models (Song et al. 2021): data turns into noise by a stochastic differential equation.

    dx = f(t) x dt + g(t) dw    with the marginals    x_t = alpha(t) x_0 + sigma(t) noise,    0 <= t <= 1

The network is trained by denoising score matching with the weight sigma^2 (their Eq. 7):

    sigma^2 |score + noise / sigma|^2 = |noise - network|^2,    score = -network / sigma

so it predicts the noise. It is given x_t / sqrt(alpha^2 + sigma^2), and so are the networks of diffusers' schedulers:
they know any such path by its table of betas, which a saved model has.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from ldm.diffusion.path import ProbabilityPath

NUM_LEVELS = 1000
"""The rows of a saved table. The network's time input runs from 0 to NUM_LEVELS - 1."""

DIGITS = 9
"""The significant digits of settings that are read from a table."""

Table = np.ndarray[Any, np.dtype[np.float64]]


class ScoreSDEPath(ProbabilityPath):
    """A path that is defined by an SDE; the prediction is the noise.

    Attributes:
        scheduler_class: the scheduler of a saved model.
        smallest_time: t of the lowest level.
    """

    scheduler_class: ClassVar[str]
    smallest_time: ClassVar[float]
    uses_table: ClassVar[bool] = True
    prediction_type = "epsilon"

    @abstractmethod
    def marginal(self, time: Tensor) -> tuple[Tensor, Tensor]:
        """alpha and sigma at times in [0, 1], all of the same shape."""

    @classmethod
    @abstractmethod
    def of_ratios(cls, log_ratios: Table) -> Self | None:
        """The path whose log(sigma / alpha) at the levels of a table are these [T]; it may be only nearly this."""

    @classmethod
    def of_config(cls, config: Mapping[str, Any]) -> Self | None:
        betas = config.get("trained_betas")
        if betas is None or len(betas) != NUM_LEVELS or config.get("prediction_type", "epsilon") != "epsilon":
            return None
        log_ratios = _log_ratios_of(np.asarray(betas, dtype=np.float64))
        found = cls.of_ratios(log_ratios) if np.isfinite(log_ratios).all() else None
        return found if found is not None and np.allclose(found.log_ratios(), log_ratios, atol=1e-6) else None

    @classmethod
    def of_scheduler(cls, scheduler: Any) -> Self | None:
        return cls.of_config(scheduler.config)

    def time(self, timesteps: Tensor) -> Tensor:
        """t of the network's time inputs, of the same shape."""
        return self.smallest_time + (1 - self.smallest_time) / (NUM_LEVELS - 1) * timesteps

    def timesteps_at(self, position: Tensor) -> Tensor:
        return (NUM_LEVELS - 1) * position

    def tenth(self, timesteps: Tensor) -> Tensor:
        return (timesteps * 10 / NUM_LEVELS).long().clamp(0, 9)

    def alpha(self, timesteps: Tensor) -> Tensor:
        return self.marginal(self.time(timesteps))[0].view(-1, 1, 1, 1)

    def sigma(self, timesteps: Tensor) -> Tensor:
        return self.marginal(self.time(timesteps))[1].view(-1, 1, 1, 1)

    def target(self, x_0: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """noise."""
        return noise

    def to_x_0(self, model_pred: Tensor, noisy_latents: Tensor, timesteps: Tensor) -> Tensor:
        """(x_t - sigma epsilon) / alpha = (x_t + sigma^2 score) / alpha."""
        return (noisy_latents - self.sigma(timesteps) * model_pred) / self.alpha(timesteps)

    def scale_model_input(self, noisy_latents: Tensor, timesteps: Tensor) -> Tensor:
        """x_t / sqrt(alpha^2 + sigma^2)."""
        return noisy_latents / (self.alpha(timesteps) ** 2 + self.sigma(timesteps) ** 2).sqrt()

    def noise_to_signal(self, timesteps: Sequence[float]) -> list[float]:
        if min(timesteps) < 0 or max(timesteps) > NUM_LEVELS - 1:
            raise ValueError(f"timesteps must be 0 to {NUM_LEVELS - 1}")
        alpha, sigma = self.marginal(self.time(torch.tensor(timesteps, dtype=torch.float64)))
        return (sigma / alpha).tolist()

    def log_ratios(self) -> Table:
        """log(sigma / alpha) of each level of the table, [T]."""
        alpha, sigma = self.marginal(self.time(torch.arange(NUM_LEVELS, dtype=torch.float64)))
        ratios: Table = (sigma / alpha).log().numpy()
        return ratios

    def scheduler_config(self) -> dict[str, Any]:
        """A scheduler with the betas of this path: any of DDPM's can sample along it."""
        return {
            "_class_name": self.scheduler_class,
            "num_train_timesteps": NUM_LEVELS,
            "trained_betas": _betas_of(self.log_ratios()).tolist(),
            "prediction_type": "epsilon",
            "clip_sample": False,
            "steps_offset": 1,  # Stable Diffusion's value, without which its pipeline warns; trailing ignores it
            "timestep_spacing": "trailing",
        }


def _betas_of(log_ratios: Table) -> Table:
    """beta_t = 1 - level_t / level_{t-1}, with level = alpha^2 / (alpha^2 + sigma^2)."""
    log_levels = -np.log1p(np.exp(2 * log_ratios))
    betas: Table = -np.expm1(np.diff(log_levels, prepend=0.0))
    return betas


def _log_ratios_of(betas: Table) -> Table:
    """What `_betas_of` was given; not finite where the betas are no noise schedule."""
    with np.errstate(all="ignore"):
        log_levels = np.cumsum(np.log1p(-betas))
        ratios: Table = 0.5 * np.log(np.expm1(-log_levels))
    return ratios


def rounded(value: float) -> float:
    """A setting that was computed from a table, as it was given."""
    return float(f"{value:.{DIGITS}g}")

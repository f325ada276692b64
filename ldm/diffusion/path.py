"""Probability paths from data to noise, and the interpretation of predictions on them.

    x_t = alpha_t x_0 + sigma_t noise

A path is a class of a few equations. The objective and the sampler only use its interface and work with any path.
DDPM's path (Ho et al. 2020) is the first:

    alpha_t^2 + sigma_t^2 = 1,    alpha_t^2 = prod_s (1 - beta_s)

Its values are bit-identical to those of diffusers' `DDPMScheduler` with the same settings; a test compares them.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from ldm.config import Settings
from ldm.diffusion.learned_variance import ReverseSteps

LEARNED_VARIANCE = "learned_range"
"""diffusers' name for a variance between two extremes, in `DDPMScheduler`."""

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
    prediction_type: PredictionType = Field(
        "epsilon", description="quantity that the denoiser is trained to predict"
    )
    rescale_betas_zero_snr: bool = Field(
        False, description="rescale the schedule so that the last level is pure noise (Lin et al. 2023)"
    )
    learn_variance: bool = Field(
        False,
        description="also learn the variance of the reverse steps, by twice the output channels and the loss L_hybrid "
        "(Nichol & Dhariwal 2021); sampler ddpm uses it, others ignore it",
    )

    def model_post_init(self, _: Any) -> None:
        if self.rescale_betas_zero_snr and self.prediction_type == "epsilon":
            raise ValueError(
                "with zero terminal SNR (rescale_betas_zero_snr) use v_prediction or sample as prediction_type: "
                "epsilon carries no information there"
            )
        if self.rescale_betas_zero_snr and self.learn_variance:
            raise ValueError(
                "learn_variance needs a schedule with noise and signal at each level: leave out "
                "rescale_betas_zero_snr"
            )


class ProbabilityPath(ABC):
    """How data is noised, and the inputs and targets of a network on this path.

    The noise level of each sample is given by the network's time input, `timesteps` [B]: integer indices into DDPM's
    table, or floats on a continuous path.

    Attributes:
        name: the path's name in settings.
        uses_table: whether DDPM's schedulers sample along it, as their table of betas can describe it.
        reverse_steps: the steps whose variance the network predicts in further output channels; None if it does not.
        settings: what distinguishes this path from others of its class.
        prediction_type: the quantity that the network predicts, under diffusers' name.
    """

    name: ClassVar[str]
    uses_table: ClassVar[bool] = False
    reverse_steps: ReverseSteps | None = None
    settings: Settings
    prediction_type: str

    @abstractmethod
    def timesteps_at(self, position: Tensor) -> Tensor:
        """Timesteps [B] at positions [B] in [0, 1), from least to most noise; uniform if the positions are."""

    @abstractmethod
    def tenth(self, timesteps: Tensor) -> Tensor:
        """The tenth of the path, 0 (least noise) to 9, that each timestep is in: [B] -> integers [B]."""

    @abstractmethod
    def alpha(self, timesteps: Tensor) -> Tensor:
        """alpha_t as [B, 1, 1, 1] for timesteps [B]."""

    @abstractmethod
    def sigma(self, timesteps: Tensor) -> Tensor:
        """sigma_t as [B, 1, 1, 1] for timesteps [B]."""

    @abstractmethod
    def target(self, x_0: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """The network's training target, [B, C, h, w]."""

    @abstractmethod
    def to_x_0(self, model_pred: Tensor, noisy_latents: Tensor, timesteps: Tensor) -> Tensor:
        """The clean latents implied by a prediction, all [B, C, h, w]."""

    @abstractmethod
    def scheduler_config(self) -> dict[str, Any]:
        """The `scheduler_config.json` of a diffusers scheduler that samples along this path."""

    @classmethod
    @abstractmethod
    def of_scheduler(cls, scheduler: Any) -> Self | None:
        """The path that a diffusers scheduler samples along, or None if it is not of this class."""

    @classmethod
    def of_config(cls, config: Mapping[str, Any]) -> Self | None:
        """The path of a model with this `scheduler_config.json`, or None if it is not of this class.

        Raises:
            ValidationError: the configuration has a value that the path does not support.
        """
        return None

    def scheduler_settings(self, class_name: str) -> dict[str, Any]:
        """The settings that make a diffusers scheduler class sample along this path; DDPM's are in the config."""
        return {}

    @abstractmethod
    def noise_to_signal(self, timesteps: Sequence[float]) -> list[float]:
        """sigma_t / alpha_t at any timesteps, as Python floats.

        Raises:
            ValueError: a timestep is outside the path.
        """

    def snr(self, timesteps: Tensor) -> Tensor:
        """alpha_t^2 / sigma_t^2 as [B]."""
        return (self.alpha(timesteps) / self.sigma(timesteps)).square().view(-1)

    def add_noise(self, x_0: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """x_t = alpha_t x_0 + sigma_t noise, Eq. 4 of Ho et al. 2020. All [B, C, h, w]."""
        return self.alpha(timesteps) * x_0 + self.sigma(timesteps) * noise

    def scale_model_input(self, noisy_latents: Tensor, timesteps: Tensor) -> Tensor:
        """The network's input for x_t; the default is x_t itself."""
        return noisy_latents


class DDPMPath(ProbabilityPath):
    """DDPM's path: a table of alpha_t and sigma_t, one row for each training timestep.

    Between two timesteps log(sigma_t / alpha_t) is linear.

    Attributes:
        alphas_cumprod: alpha_t^2 of each timestep, [T].
    """

    name: ClassVar[str] = "ddpm"
    uses_table: ClassVar[bool] = True
    settings: ScheduleSettings

    def __init__(self, settings: ScheduleSettings, alphas_cumprod: Tensor | None = None) -> None:
        """Uses the given table, such as a scheduler's, or computes it from the settings."""
        self.settings = settings
        self.prediction_type = settings.prediction_type
        self.alphas_cumprod = _alphas_cumprod(settings) if alphas_cumprod is None else alphas_cumprod
        self.reverse_steps = ReverseSteps(self.alphas_cumprod) if settings.learn_variance else None
        self._levels: dict[torch.device, Tensor] = {}

    @classmethod
    def of_scheduler(cls, scheduler: Any) -> Self | None:
        table = getattr(scheduler, "alphas_cumprod", None)
        if table is None:
            return None
        predicts = getattr(scheduler, "config", {}).get("prediction_type", "epsilon")
        return cls(ScheduleSettings(num_train_timesteps=len(table), prediction_type=predicts), table)

    def timesteps_at(self, position: Tensor) -> Tensor:
        count = self.settings.num_train_timesteps
        return (position * count).long().clamp(max=count - 1)

    def tenth(self, timesteps: Tensor) -> Tensor:
        return timesteps * 10 // self.settings.num_train_timesteps

    def alpha(self, timesteps: Tensor) -> Tensor:
        return self._at(timesteps) ** 0.5

    def sigma(self, timesteps: Tensor) -> Tensor:
        return (1 - self._at(timesteps)) ** 0.5

    def snr(self, timesteps: Tensor) -> Tensor:
        """alpha_t^2 / sigma_t^2 as [B]; 0 at a zero-SNR last level."""
        level = self._level(timesteps)
        return level / (1 - level)

    def target(self, x_0: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """noise, x_0 or v = alpha noise - sigma x_0 (Salimans & Ho 2022)."""
        match self.settings.prediction_type:
            case "epsilon":
                return noise
            case "sample":
                return x_0
            case "v_prediction":
                return self.alpha(timesteps) * noise - self.sigma(timesteps) * x_0

    def to_x_0(self, model_pred: Tensor, noisy_latents: Tensor, timesteps: Tensor) -> Tensor:
        """(x_t - sigma epsilon) / alpha, the prediction itself, or alpha x_t - sigma v."""
        alpha, sigma = self.alpha(timesteps), self.sigma(timesteps)
        match self.settings.prediction_type:
            case "epsilon":
                return (noisy_latents - sigma * model_pred) / alpha
            case "sample":
                return model_pred
            case "v_prediction":
                return alpha * noisy_latents - sigma * model_pred

    def noise_to_signal(self, timesteps: Sequence[float]) -> list[float]:
        """sigma_t / alpha_t; finite at zero SNR."""
        if min(timesteps) < 0 or max(timesteps) > len(self.alphas_cumprod) - 1:
            raise ValueError(f"timesteps must be 0 to {len(self.alphas_cumprod) - 1}")
        return np.exp(np.interp(timesteps, *self._log_ratios())).tolist()  # type: ignore[no-any-return]

    def scheduler_config(self) -> dict[str, Any]:
        """Stable Diffusion's `DDIMScheduler` configuration with these settings.

        With a learned variance the class is `DDPMScheduler`, the only one that uses it.
        """
        settings = self.settings.model_dump(exclude={"learn_variance"})
        spacing = "trailing" if self.settings.rescale_betas_zero_snr else "leading"
        if self.settings.learn_variance:
            return {
                "_class_name": "DDPMScheduler",
                **settings,
                "variance_type": LEARNED_VARIANCE,
                "clip_sample": False,
                "steps_offset": 1,
                "timestep_spacing": spacing,
            }
        return {
            "_class_name": "DDIMScheduler",
            **settings,
            "clip_sample": False,
            "set_alpha_to_one": False,
            "steps_offset": 1,  # Stable Diffusion's value; trailing spacing ignores it
            "timestep_spacing": spacing,
        }

    def _at(self, timesteps: Tensor) -> Tensor:
        return self._level(timesteps).view(-1, 1, 1, 1)

    def _level(self, timesteps: Tensor) -> Tensor:
        """alpha_t^2 as [B]. The table is copied to each device once: copying in every call would synchronize."""
        if timesteps.is_floating_point():
            ratios = torch.tensor(np.interp(timesteps.cpu().numpy(), *self._log_ratios()))
            return torch.sigmoid(-2 * ratios).to(timesteps)
        device = timesteps.device
        if device not in self._levels:
            self._levels[device] = self.alphas_cumprod.to(device)
        return self._levels[device][timesteps]

    def _log_ratios(self) -> "tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]":
        """All timesteps [T], and log(sigma_t / alpha_t) at each of them."""
        level = self.alphas_cumprod.double().clamp(min=1e-12).cpu().numpy()
        return np.arange(len(level)), 0.5 * np.log((1 - level) / level)


def _alphas_cumprod(settings: ScheduleSettings) -> Tensor:
    """alpha_t^2 = prod_s (1 - beta_s), [T]."""
    betas = _betas(settings)
    if settings.rescale_betas_zero_snr:
        betas = _zero_terminal_snr(betas)
    return torch.cumprod(1.0 - betas, dim=0)


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

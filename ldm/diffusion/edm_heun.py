"""EDM's sampler, Algorithm 2 of Karras et al. 2022: Heun's method with churn. diffusers has none for EDM models."""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.schedulers.scheduling_edm_euler import EDMEulerScheduler
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

MAX_CHURN = 2**0.5 - 1
"""The most by which churn raises a noise level, as a fraction of it."""


class EDMHeunScheduler(EDMEulerScheduler):  # type: ignore[misc]
    """Algorithm 2 of Karras et al. 2022 with the interface of diffusers' schedulers.

    A step makes two denoiser calls, at its own noise level and at the next one; the last step makes one. With churn, a
    step starts at a higher level: sigma (1 + min(s_churn / steps, sqrt(2) - 1)). The noise for that is added at the
    end of the step before, so that the denoiser is called at the level that the latents have. (The churn of diffusers'
    `EDMEulerScheduler` is added after the call.)
    """

    order = 2
    sigmas: Tensor

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        sigma_min: float = 0.002,
        sigma_max: float = 80.0,
        sigma_data: float = 0.5,
        sigma_schedule: str = "karras",
        num_train_timesteps: int = 1000,
        prediction_type: str = "epsilon",
        rho: float = 7.0,
        final_sigmas_type: str = "zero",
        s_churn: float = 0.0,
        s_tmin: float = 0.0,
        s_tmax: float = float("inf"),
        s_noise: float = 1.0,
    ) -> None:
        # by name: diffusers records positional arguments as left out
        super().__init__(
            sigma_min=sigma_min,
            sigma_max=sigma_max,
            sigma_data=sigma_data,
            sigma_schedule=sigma_schedule,
            num_train_timesteps=num_train_timesteps,
            prediction_type=prediction_type,
            rho=rho,
            final_sigmas_type=final_sigmas_type,
        )

    @property
    def init_noise_sigma(self) -> float:
        """The noise level of the first call, with its churn."""
        return float(self.sigmas[0])

    def set_timesteps(self, num_inference_steps: int, device: Any = None) -> None:
        """Space the steps' levels by Eq. 5; `sigmas` has the level of each call, and 0."""
        super().set_timesteps(num_inference_steps, device)
        reached = self.sigmas[:-1]
        started = reached * (1 + self._churn(reached, num_inference_steps))
        calls = torch.stack([reached, started], dim=1).flatten()[1:]
        self._reached = torch.cat([reached, torch.zeros(1)])
        self.sigmas = torch.cat([calls, torch.zeros(1)])
        self.timesteps = self.precondition_noise(calls)
        self._first_derivative: Tensor | None = None
        self._start: Tensor | None = None

    def _churn(self, sigmas: Tensor, num_inference_steps: int) -> Tensor:
        """gamma of each step."""
        config = self.config
        gamma = min(config.s_churn / num_inference_steps, MAX_CHURN)
        inside = (sigmas >= config.s_tmin) & (sigmas <= config.s_tmax)
        raised: Tensor = gamma * inside.to(sigmas.dtype)
        return raised

    def step(
        self,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        return_dict: bool = False,
    ) -> tuple[Tensor]:
        """The latents [B, C, h, w] for the next call, after a call with `sample`."""
        if self.step_index is None:
            self._init_step_index(timestep)
        call = self._step_index
        self._step_index += 1
        sigma = self.sigmas[call]
        derivative = (sample - self.precondition_outputs(sample, model_output, sigma)) / sigma
        number, is_second = (call + 1) // 2, bool(call % 2)
        if not is_second:
            following = self._reached[number + 1]
            self._first_derivative, self._start = derivative, sample
            moved = sample + (following - sigma) * derivative
            return (moved,)
        assert self._first_derivative is not None and self._start is not None
        mean = (self._first_derivative + derivative) / 2
        moved = self._start + (sigma - self.sigmas[call - 1]) * mean
        return (self._with_churn(moved, sigma, self.sigmas[call + 1], generator),)

    def _with_churn(self, sample: Tensor, sigma: Tensor, raised: Tensor, generator: Any) -> Tensor:
        """Latents of one noise level with the noise that brings them to a higher one."""
        if raised <= sigma:
            return sample
        noise = randn_tensor(sample.shape, generator=generator, device=sample.device, dtype=sample.dtype)
        size = (raised**2 - sigma**2).sqrt() * self.config.s_noise
        churned: Tensor = sample + size.to(sample.dtype) * noise
        return churned

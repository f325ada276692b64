"""Predictor-corrector sampling, Algorithms 1 to 5 of Song et al. 2021.

A step first corrects the latents at their noise level, by Langevin dynamics, and then goes to the next level. All is
written for x_t / alpha_t = x_0 + sigma noise, in which every path of diffusers' tables is the variance exploding SDE.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.schedulers.scheduling_euler_ancestral_discrete import EulerAncestralDiscreteScheduler
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor


class PredictorCorrectorScheduler(EulerAncestralDiscreteScheduler):  # type: ignore[misc]
    """Predictor-corrector sampling with the interface of diffusers' schedulers.

    A step makes 1 + `corrector_steps` denoiser calls at one noise level. The last step goes to the mean, without
    noise. The corrector's step size is computed for each image alone. (In diffusers' `ScoreSdeVeScheduler` it is the
    mean of the batch, so an image depends on the others.)
    """

    sigmas: Tensor
    timesteps: Tensor

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: Any = None,
        prediction_type: str = "epsilon",
        timestep_spacing: str = "linspace",
        steps_offset: int = 0,
        rescale_betas_zero_snr: bool = False,
        predictor: Literal["ancestral", "reverse_diffusion"] = "ancestral",
        corrector_steps: int = 1,
        snr: float = 0.16,
    ) -> None:
        # by name: diffusers records positional arguments as left out
        super().__init__(
            num_train_timesteps=num_train_timesteps,
            beta_start=beta_start,
            beta_end=beta_end,
            beta_schedule=beta_schedule,
            trained_betas=trained_betas,
            prediction_type=prediction_type,
            timestep_spacing=timestep_spacing,
            steps_offset=steps_offset,
            rescale_betas_zero_snr=rescale_betas_zero_snr,
        )

    @property
    def order(self) -> int:
        """Denoiser calls of a step."""
        return 1 + int(self.config.corrector_steps)

    def set_timesteps(self, num_inference_steps: int, device: Any = None) -> None:
        """Space the levels as the model's config says; `sigmas` has the level of each call, and 0."""
        super().set_timesteps(num_inference_steps, device)
        levels = self.sigmas[:-1].repeat_interleave(self.order)
        self.sigmas = torch.cat([levels, torch.zeros(1)])
        self.timesteps = self.timesteps.repeat_interleave(self.order)

    def index_for_timestep(self, timestep: Any, schedule_timesteps: Tensor | None = None) -> int:
        """The first call at a timestep."""
        timesteps = self.timesteps if schedule_timesteps is None else schedule_timesteps
        return int((timesteps == timestep).nonzero()[0])

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
        sigma = self.sigmas[call].to(sample.dtype)
        score = (self._x_0(model_output, sample, sigma) - sample) / sigma**2
        noise = randn_tensor(sample.shape, generator=generator, device=sample.device, dtype=sample.dtype)
        if (call + 1) % self.order:
            return (corrected(sample, score, noise, self.config.snr),)
        following = self.sigmas[call + 1].to(sample.dtype)
        predict = {"ancestral": ancestral, "reverse_diffusion": reverse_diffusion}[self.config.predictor]
        return (predict(sample, score, noise, sigma, following),)

    def _x_0(self, model_output: Tensor, sample: Tensor, sigma: Tensor) -> Tensor:
        """x_0 from a prediction of the noise, of x_0, or of v for sample / sqrt(sigma^2 + 1)."""
        match self.config.prediction_type:
            case "epsilon":
                return sample - sigma * model_output
            case "sample":
                return model_output
            case _:
                return sample / (sigma**2 + 1) - sigma / (sigma**2 + 1).sqrt() * model_output


def reverse_diffusion(
    sample: Tensor, score: Tensor, noise: Tensor, sigma: Tensor, following: Tensor
) -> Tensor:
    """The discretised reverse SDE, Eq. 46 and Algorithm 2: from `sigma` to `following`; to the mean at 0."""
    variance = sigma**2 - following**2
    mean = sample + variance * score
    return mean + variance.sqrt() * noise if following > 0 else mean


def ancestral(sample: Tensor, score: Tensor, noise: Tensor, sigma: Tensor, following: Tensor) -> Tensor:
    """Ancestral sampling, Eq. 47: as above, with the smaller variance of a step to known x_0."""
    variance = sigma**2 - following**2
    return sample + variance * score + following / sigma * variance.sqrt() * noise


def corrected(sample: Tensor, score: Tensor, noise: Tensor, snr: float) -> Tensor:
    """A step of Langevin dynamics, Algorithm 4: `snr` is the size of the score's part relative to the noise's."""
    norm_ratio = noise.flatten(1).norm(dim=1) / score.flatten(1).norm(dim=1).clamp(min=1e-12)
    size = (2 * (snr * norm_ratio) ** 2).view(-1, 1, 1, 1)
    moved: Tensor = sample + size * score + (2 * size).sqrt() * noise
    return moved

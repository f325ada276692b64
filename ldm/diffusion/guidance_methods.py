"""Ways of guiding besides classifier-free guidance, each a function of the branches' predictions.

Axis letters: B batch, C latent channels, h w latent size. c is the prediction for the prompt, u for the negative
prompt, s the guidance scale. With s = 1 every result is c.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from ldm.diffusion.guidance import NEGATIVE, OWN_PROMPT, PROMPT, CombineAt
from ldm.diffusion.path import ProbabilityPath
from ldm.types import Step

PERTURBED = "perturbed"
"""The prediction for the prompt by the denoiser with perturbed attention."""
WEAK = "weak"
"""The prediction for the prompt by a weaker denoiser."""


class AdaptiveProjectedGuidance:
    """APG, Sadat et al. 2025, Algorithm 1: the part of c - u that is parallel to c is reduced.

    All of it happens on x_0, whatever the network predicts. An object guides one sampling, as it has a memory.
    """

    def __init__(
        self,
        guidance_scale: float,
        path: ProbabilityPath,
        *,
        eta: float = 0.0,
        momentum: float = 0.0,
        norm_threshold: float = 0.0,
    ) -> None:
        """With eta 1, momentum 0 and no threshold this is classifier-free guidance.

        Args:
            path: with the network's prediction type.
            eta: the share of the parallel part that is kept.
            momentum: the share of the previous difference that is added; the paper uses negative ones.
            norm_threshold: the largest norm of an image's difference; 0 is no limit.
        """
        self.guidance_scale, self.path = guidance_scale, path
        self.eta, self.momentum, self.norm_threshold = eta, momentum, norm_threshold
        self._previous: Tensor | None = None

    def __call__(
        self, predictions: Mapping[str, Tensor], latents: Tensor, timesteps: Tensor, step: Step | None
    ) -> Tensor:
        negative, prompt = predictions[NEGATIVE], predictions[PROMPT]
        slope = x_0_slope(self.path, timesteps, latents)
        difference = self._with_momentum(slope * (prompt - negative), step)
        difference = limit_norm(difference, self.norm_threshold)
        noisy_latents = latents / self.path.scale_model_input(torch.ones_like(slope), timesteps)
        parallel, orthogonal = project(difference, self.path.to_x_0(prompt, noisy_latents, timesteps))
        return prompt + (self.guidance_scale - 1) * (orthogonal + self.eta * parallel) / slope

    def _with_momentum(self, difference: Tensor, step: Step | None) -> Tensor:
        if not self.momentum:
            return difference
        previous = self._previous
        if previous is not None and step is not None and step.evaluation > 0:
            difference = difference + self.momentum * previous
        self._previous = difference
        return difference


def x_0_slope(path: ProbabilityPath, timesteps: Tensor, like: Tensor) -> Tensor:
    """The change of x_0 per change of the prediction, [B, 1, 1, 1]; x_0 is linear in it on every path."""
    one = torch.ones(len(timesteps), 1, 1, 1, dtype=like.dtype, device=like.device)
    zero = torch.zeros_like(one)
    return path.to_x_0(one, zero, timesteps) - path.to_x_0(zero, zero, timesteps)


def limit_norm(difference: Tensor, largest: float) -> Tensor:
    """The difference [B, ...] scaled down so that no image's norm is above `largest`; 0 is no limit."""
    if not largest:
        return difference
    norm = difference.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    limited: Tensor = difference * (largest / norm.clamp(min=largest))
    return limited


def project(values: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
    """The parts of `values` parallel and orthogonal to `direction`, for each image; all [B, C, h, w]."""
    unit = torch.nn.functional.normalize(direction.flatten(1), dim=1).view_as(direction)
    parallel = (values * unit).sum(dim=(1, 2, 3), keepdim=True) * unit
    return parallel, values - parallel


def cfg_zero_star(guidance_scale: float, zero_init_steps: int = 0) -> CombineAt:
    """CFG-Zero*, Fan et al. 2025, Eq. 9 and 10: u is scaled by <c, u> / |u|^2 before guidance.

    Args:
        zero_init_steps: the first steps in which the prediction is zero. This is meant for flow matching, where the
            prediction is a velocity. A zero noise prediction would mean x_0 = x_t / alpha_t.
    """

    def combine(
        predictions: Mapping[str, Tensor], latents: Tensor, timesteps: Tensor, step: Step | None
    ) -> Tensor:
        negative, prompt = predictions[NEGATIVE], predictions[PROMPT]
        if step is not None and step.index < zero_init_steps:
            return torch.zeros_like(prompt)
        negative = negative * optimal_scale(prompt, negative)
        return negative + guidance_scale * (prompt - negative)

    return combine


def optimal_scale(prompt: Tensor, negative: Tensor) -> Tensor:
    """<c, u> / |u|^2 of each image, [B, 1, 1, 1]."""
    axes = (1, 2, 3)
    return (prompt * negative).sum(axes, keepdim=True) / negative.square().sum(axes, keepdim=True).clamp(
        min=1e-8
    )


def on_the_mean(combine: CombineAt) -> CombineAt:
    """`combine` for the channels of the latents; a learned variance, in further channels, is that of the prompt.

    APG and CFG-Zero* compare predictions by their direction, in which a variance has no place.
    """

    def combined(
        predictions: Mapping[str, Tensor], latents: Tensor, timesteps: Tensor, step: Step | None
    ) -> Tensor:
        channels = latents.shape[1]
        means = {name: each[:, :channels] for name, each in predictions.items()}
        variance = predictions[OWN_PROMPT][:, channels:]
        return torch.cat([combine(means, latents, timesteps, step), variance], dim=1)

    return combined


def perturbed_attention_guidance(guidance_scale: float, perturbed_scale: float) -> CombineAt:
    """PAG with classifier-free guidance, Ahn et al. 2024, Eq. 17: u + s (c - u) + p (c - perturbed c)."""

    def combine(
        predictions: Mapping[str, Tensor], latents: Tensor, timesteps: Tensor, step: Step | None
    ) -> Tensor:
        negative, prompt = predictions[NEGATIVE], predictions[PROMPT]
        model_pred = negative + guidance_scale * (prompt - negative)
        return model_pred + perturbed_scale * (predictions[OWN_PROMPT] - predictions[PERTURBED])

    return combine


def autoguidance(guidance_scale: float) -> CombineAt:
    """Karras et al. 2024, Eq. 4: weak + s (c - weak), where a smaller or less trained model predicts `weak`."""

    def combine(
        predictions: Mapping[str, Tensor], latents: Tensor, timesteps: Tensor, step: Step | None
    ) -> Tensor:
        return predictions[WEAK] + guidance_scale * (predictions[PROMPT] - predictions[WEAK])

    return combine

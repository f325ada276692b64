"""The training objective in latent space, on any path: timesteps, noise, target, weight and loss."""

from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from ldm.config import Settings
from ldm.diffusion.learned_variance import VLB_WEIGHT
from ldm.diffusion.path import ProbabilityPath
from ldm.errors import UserError
from ldm.types import Conditioning, Denoiser

MIN_SNR, MAX_SNR = 1e-3, 1e4
"""The SNR is clamped to this range for unbounded weights; Stable Diffusion's SNR ranges from 0.0047 to 1,175."""

NUM_TENTHS = 10

BELONGS_TO = {
    "logit_mean": ("timestep_distribution", "logit_normal"),
    "logit_std": ("timestep_distribution", "logit_normal"),
    "min_snr_gamma": ("weighting", "min_snr"),
    "p2_k": ("weighting", "p2"),
    "p2_gamma": ("weighting", "p2"),
    "huber_delta": ("loss", "huber"),
}
"""Settings that only apply to one value of another setting: that setting and that value."""


class ObjectiveSettings(Settings):
    """How noise levels are sampled, which noise is added, and how the loss weights the error."""

    timestep_distribution: Literal["uniform", "logit_normal", "loss_aware"] = Field(
        "uniform",
        description="logit_normal samples the middle of the schedule more often: Esser et al. 2024; loss_aware samples "
        "timesteps with larger losses more often, and weights them less: Nichol & Dhariwal 2021, section 3.3",
    )
    logit_mean: float = Field(0.0, description="mean of logit_normal; above 0 favors high noise")
    logit_std: float = Field(1.0, gt=0, description="standard deviation of logit_normal")
    timestep_shift: float = Field(
        1.0,
        gt=0,
        description="above 1 samples high noise, where the prompt matters most, more often; 1: no shift",
    )
    shift_by_size: bool = Field(
        False,
        description="multiply timestep_shift by sqrt(pixels of the image / pixels of data.height x data.width), "
        "because more pixels hide the image less: Eq. 23 of Esser et al. 2024; samplers use one shift for all sizes",
    )

    weighting: Literal["none", "min_snr", "p2", "debiased", "snr_plus_one", "x_0"] = Field(
        "none",
        description="none: the plain DDPM loss; min_snr: Hang et al. 2023; p2: Choi et al. 2022; debiased: "
        "Yu et al. 2023; snr_plus_one: Salimans & Ho 2022; x_0: the unweighted error of x_0",
    )
    min_snr_gamma: float = Field(5.0, gt=0, description="gamma of min_snr")
    p2_k: float = Field(1.0, gt=0, description="k of p2")
    p2_gamma: float = Field(1.0, ge=0, description="gamma of p2")

    loss: Literal["mse", "huber"] = Field(
        "mse", description="huber: large errors count linearly instead of quadratically"
    )
    huber_delta: float = Field(0.1, gt=0, description="error at which huber changes from quadratic to linear")

    offset_noise: float = Field(
        0.0,
        ge=0,
        description="scale of noise that is constant within each channel, for dark and bright images; 0: off",
    )
    input_perturbation: float = Field(
        0.0,
        ge=0,
        description="scale of extra noise added only to the input: Ning et al. 2023, who use 0.1; 0: off",
    )

    @model_validator(mode="after")
    def _check_contradictions(self) -> Self:
        for name, (owner, choice) in BELONGS_TO.items():
            value = getattr(self, name)
            if value != type(self).model_fields[name].default and getattr(self, owner) != choice:
                raise ValueError(f"{name} = {value} has no effect: set {owner}={choice} or leave it out")
        return self


def loss_weight(snr: Tensor, prediction_type: str, settings: ObjectiveSettings) -> Tensor:
    """Weight of each sample's squared error, [B] -> [B]; finite from snr = 0 to infinity.

    A weighting multiplies the squared error of x_0 by some w(snr). Since x_0 = (x_t - sigma epsilon)/alpha =
    alpha x_t - sigma v, the squared error of x_0 is that of epsilon divided by snr, or that of v divided by snr + 1.
    The weights of the squared error are therefore

                      of x_0             of epsilon        of v
        min_snr       min(snr, g)        min(1, g/snr)     min(snr, g)/(snr + 1)      Eq. 6 of Hang et al. 2023
        p2            snr/(k + snr)^g *  1/(k + snr)^g     alpha^2/(k + snr)^g        Choi et al. 2022
        debiased      sqrt(snr) *        1/sqrt(snr) *     alpha sigma                Yu et al. 2023
        snr_plus_one  snr + 1 *          1 + 1/snr *       1                          Salimans & Ho 2022
        x_0           1                  1/snr *           1/(snr + 1) = sigma^2

    On a rectified flow x_0 = x_t - sigma velocity and sigma = 1/(1 + sqrt(snr)), so the weight of the velocity's error
    is that of x_0 times sigma^2.

    With `none` they are all 1. Weights with a star are unbounded: for them, snr is clamped to [MIN_SNR, MAX_SNR].

    Raises:
        UserError: the weighting does not support this prediction type.
    """
    if settings.weighting == "none":
        return torch.ones_like(snr)
    if prediction_type not in ("sample", "epsilon", "v_prediction", "flow_prediction"):
        raise UserError(
            f"objective.weighting = {settings.weighting!r} with prediction type {prediction_type!r}",
            "use none",
        )
    ones, bounded = torch.ones_like(snr), snr.clamp(MIN_SNR, MAX_SNR)
    gamma, k, power = settings.min_snr_gamma, settings.p2_k, -settings.p2_gamma
    # written so that both stay in [0, 1] at snr = 0 and infinity
    alpha_square, sigma_square = 1 / (1 + 1 / snr), 1 / (snr + 1)
    of_x_0, of_epsilon, of_v = {
        "min_snr": (snr.clamp(max=gamma), gamma / snr.clamp(min=gamma), snr.clamp(max=gamma) / (snr + 1)),
        "p2": (bounded * (k + bounded) ** power, (k + snr) ** power, alpha_square * (k + snr) ** power),
        "debiased": (bounded.sqrt(), bounded.rsqrt(), (alpha_square * sigma_square).sqrt()),
        "snr_plus_one": (bounded + 1, 1 + 1 / bounded, ones),
        "x_0": (ones, 1 / bounded, sigma_square),
    }[settings.weighting]
    if prediction_type == "flow_prediction":
        return _of_velocity(snr.clamp(max=MAX_SNR), settings)
    return {"sample": of_x_0, "epsilon": of_epsilon, "v_prediction": of_v}[prediction_type]


def _of_velocity(snr: Tensor, settings: ObjectiveSettings) -> Tensor:
    """The weight of the velocity's squared error: that of x_0, times sigma^2."""
    sigma = 1 / (1 + snr.sqrt())
    return loss_weight(snr, "sample", settings) * sigma**2


def timestep_at(
    position: Tensor, path: ProbabilityPath, settings: ObjectiveSettings, size_ratio: float = 1.0
) -> Tensor:
    """Timesteps [B] for uniform samples u [B] from [0, 1).

    With logit_normal, u becomes sigmoid(mean + std q(u)) with the normal quantile function q (Eq. 19 of Esser et al.
    2024), so a timestep needs one random number either way. Then u becomes s u / (1 + (s - 1) u) with the shift s:
    their Eq. 23.

    Args:
        size_ratio: the pixels of the images divided by those of the usual size, for `shift_by_size`.
    """
    if settings.timestep_distribution == "logit_normal":
        position = torch.sigmoid(settings.logit_mean + settings.logit_std * torch.special.ndtri(position))
    shift = settings.timestep_shift * (size_ratio**0.5 if settings.shift_by_size else 1.0)
    return path.timesteps_at(shift * position / (1 + (shift - 1) * position))


def diffusion_loss(
    denoiser: Denoiser,
    latents: Tensor,
    noise: Tensor,
    timesteps: Tensor,
    conditioning: Conditioning,
    path: ProbabilityPath,
    settings: ObjectiveSettings,
    *,
    mask: Tensor | None = None,
    offset: Tensor | None = None,
    perturbation: Tensor | None = None,
) -> Tensor:
    """The loss of each sample, [B]: the weighted mean error of the prediction, Eq. 14 of Ho et al. 2020.

    If the path learns a variance, the bound that teaches it is added: Eq. 16 of Nichol & Dhariwal 2021.

    Args:
        latents: clean, scaled latents [B, C, h, w].
        noise: standard normal [B, C, h, w].
        timesteps: [B], in the path's units.
        mask: weight of each position in the loss, [B, 1, h, w] from 0 to 1; by default 1 everywhere.
        offset: standard normal [B, C], needed with `offset_noise`.
        perturbation: standard normal [B, C, h, w], needed with `input_perturbation`.
    """
    noise = _offset(noise, offset, settings.offset_noise)
    noisy_latents = path.add_noise(
        latents, _perturbed(noise, perturbation, settings.input_perturbation), timesteps
    )
    target = path.target(latents, noise, timesteps)
    model_pred = denoiser(path.scale_model_input(noisy_latents, timesteps), timesteps, conditioning)
    bound: Tensor | None = None
    if path.reverse_steps is not None:
        model_pred, v = model_pred.float().chunk(2, dim=1)
        predicted = path.to_x_0(model_pred.detach(), noisy_latents, timesteps)
        bits = path.reverse_steps.bound(latents, noisy_latents, predicted, v, timesteps)
        bound = VLB_WEIGHT * path.reverse_steps.num_timesteps * masked_mean(bits, mask)
    error = pointwise_error(model_pred.float() - target.float(), settings)
    weight = loss_weight(path.snr(timesteps), path.prediction_type, settings)
    loss = masked_mean(error, mask) * weight
    return loss if bound is None else loss + bound


def _offset(noise: Tensor, offset: Tensor | None, size: float) -> Tensor:
    """Noise with a random constant added to each channel; the target contains it too."""
    if not size:
        return noise
    assert offset is not None, "offset_noise needs the batch entry `offset`"
    return noise + size * offset[:, :, None, None]


def _perturbed(noise: Tensor, perturbation: Tensor | None, size: float) -> Tensor:
    """The noise added to the latents; the target is computed from `noise` alone: Alg. 1 of Ning et al. 2023."""
    if not size:
        return noise
    assert perturbation is not None, "input_perturbation needs the batch entry `perturbation`"
    return noise + size * perturbation


def pointwise_error(difference: Tensor, settings: ObjectiveSettings) -> Tensor:
    """The square d^2, or pseudo-Huber 2 c (sqrt(d^2 + c^2) - c): d^2 for small d, 2 c |d| for large; any shape."""
    square = difference.square()
    if settings.loss == "mse":
        return square
    delta = settings.huber_delta
    return 2 * delta * square / ((square + delta**2).sqrt() + delta)  # equivalent, without cancellation


def masked_mean(error: Tensor, mask: Tensor | None) -> Tensor:
    """The mean weighted by the mask, [B, C, h, w] -> [B]; 0 where the mask is empty."""
    if mask is None:
        return error.mean(dim=(1, 2, 3))
    mask = mask.to(error.dtype)
    area = mask.sum(dim=(1, 2, 3))
    total = (error.mean(dim=1, keepdim=True) * mask).sum(dim=(1, 2, 3))
    return total / torch.where(area > 0, area, 1)


def split_by_tenth(losses: Tensor, tenths: Tensor) -> tuple[Tensor, Tensor]:
    """The losses of each tenth (0 elsewhere) and their counts (1 or 0): both [10, B]; sums over counts are means.

    Args:
        losses: [B]; a NaN affects only its own tenth.
        tenths: from `ProbabilityPath.tenth`, [B].
    """
    inside = tenths == torch.arange(NUM_TENTHS, device=tenths.device)[:, None]
    return torch.where(inside, losses.detach().float(), 0.0), inside.float()

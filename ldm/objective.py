"""The DDPM training objective in latent space: timestep, noising, target, weight, loss."""

from typing import Literal

from pydantic import Field
from torch import Tensor

from ldm.config import Settings
from ldm.schedule import NoiseSchedule, PredictionType
from ldm.types import Denoiser, PromptEmbeds


class ObjectiveSettings(Settings):
    """Which noise levels are drawn, and how the loss weighs them."""

    timestep_shift: float = Field(
        1.0,
        gt=0,
        description="above 1 draws high noise more often, where a prompt decides; 1 draws all alike",
    )

    weighting: Literal["none", "min_snr", "x_0"] = Field(
        "none",
        description="none: the plain DDPM loss; min_snr: Hang et al. 2023; x_0: the error of x_0, at each noise",
    )
    min_snr_gamma: float = Field(5.0, gt=0, description="gamma of min_snr")


def loss_weight(snr: Tensor, prediction_type: PredictionType, settings: ObjectiveSettings) -> Tensor:
    """Weight of each sample's squared error, [B] -> [B].

    min-SNR (Eq. 6 of Hang et al. 2023) is min(snr, gamma) on the error of x_0. Written for each prediction so that
    it stays finite at snr = 0: epsilon min(1, gamma/snr), v min(snr, gamma)/(snr + 1).
    `x_0` puts weight 1 on the error of x_0: v 1/(snr + 1); for epsilon it would be 1/snr, and is 1/max(snr, 0.01).
    """
    if settings.weighting == "none":
        return snr.new_ones(snr.shape)
    if settings.weighting == "x_0":
        return _x_0_weight(snr, prediction_type)
    gamma = settings.min_snr_gamma
    match prediction_type:
        case "epsilon":
            return gamma / snr.clamp(min=gamma)
        case "sample":
            return snr.clamp(max=gamma)
        case "v_prediction":
            return snr.clamp(max=gamma) / (snr + 1)


def _x_0_weight(snr: Tensor, prediction_type: PredictionType) -> Tensor:
    match prediction_type:
        case "epsilon":
            return 1 / snr.clamp(min=0.01)
        case "sample":
            return snr.new_ones(snr.shape)
        case "v_prediction":
            return 1 / (snr + 1)


def timestep_at(position: Tensor, schedule: NoiseSchedule, settings: ObjectiveSettings) -> Tensor:
    """Integer timesteps [B] for even draws u [B] from [0, 1).

    The draws are moved to s u / (1 + (s - 1) u), with s the shift: Eq. 23 of Esser et al. 2024.
    """
    count, shift = schedule.settings.num_train_timesteps, settings.timestep_shift
    shifted = shift * position / (1 + (shift - 1) * position)
    return (shifted * count).long().clamp(max=count - 1)


def diffusion_loss(
    denoiser: Denoiser,
    latents: Tensor,
    noise: Tensor,
    timesteps: Tensor,
    prompt_embeds: PromptEmbeds,
    schedule: NoiseSchedule,
    settings: ObjectiveSettings,
) -> Tensor:
    """One loss a sample, [B]: the weighted mean squared error of the prediction, Eq. 14 of Ho et al. 2020.

    Args:
        latents: clean, scaled latents [B, C, h, w].
        noise: standard normal [B, C, h, w].
        timesteps: integers [B].
    """
    noisy_latents = schedule.add_noise(latents, noise, timesteps)
    target = schedule.target(latents, noise, timesteps)
    model_pred = denoiser(noisy_latents, timesteps, prompt_embeds)
    error = (model_pred.float() - target.float()).square().mean(dim=(1, 2, 3))
    return error * loss_weight(schedule.snr(timesteps), schedule.settings.prediction_type, settings)

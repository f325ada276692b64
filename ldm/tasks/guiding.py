"""From the setting `guidance` to a guided denoiser."""

from dataclasses import replace

import torch
from torch import Tensor

from ldm.diffusion.flow import FlowPath
from ldm.diffusion.guidance import (
    NEGATIVE,
    CombineAt,
    GuidanceInputs,
    guide_at,
    guide_with_negative,
    rescaled,
)
from ldm.diffusion.guidance_methods import (
    PERTURBED,
    WEAK,
    AdaptiveProjectedGuidance,
    autoguidance,
    cfg_zero_star,
    on_the_mean,
    perturbed_attention_guidance,
)
from ldm.errors import UserError
from ldm.models.generation_settings import GenerationSettings
from ldm.types import Conditioning, Denoiser


def told_guidance(conditioning: Conditioning, guidance_scale: float | Tensor) -> Conditioning:
    """The conditioning of a denoiser that is told the guidance scale and needs no second branch for it.

    Args:
        guidance_scale: of each row [B], or of all.
    """
    rows = torch.as_tensor(guidance_scale, dtype=torch.float32, device=conditioning.prompt_embeds.device)
    return replace(conditioning, guidance_scale=rows.expand(len(conditioning)))


def without_branches(settings: GenerationSettings) -> GenerationSettings:
    """The settings from which `Task.guided` makes no guidance, for a denoiser that is told the scale."""
    return settings.model_copy(update={"guidance": "cfg", "guidance_scale": 1.0})


def guided_by(
    denoiser: Denoiser, negative: Conditioning, settings: GenerationSettings, inputs: GuidanceInputs
) -> Denoiser:
    """The denoiser with the guidance of the settings; itself where the scale leaves nothing to guide.

    Args:
        negative: B rows, as are the joined prompts in `inputs`.

    Raises:
        UserError: autoguidance has no second model, or joined prompts.
    """
    scale = settings.guidance_scale
    if settings.guidance == "cfg" or (settings.guidance == "pag" and settings.pag_scale == 0):
        return guide_with_negative(
            denoiser,
            negative,
            scale,
            settings.guidance_rescale,
            settings.guidance_interval,
            inputs.composition,
        )
    if scale <= 1 and settings.guidance != "pag" and inputs.composition.is_plain:
        return denoiser
    if settings.guidance == "autoguidance":
        return _autoguided(denoiser, settings, inputs)
    combine = rescaled(_combine(settings, inputs), settings.guidance_rescale)
    if settings.guidance in ("apg", "cfg-zero"):
        combine = on_the_mean(combine)
    others = {PERTURBED: inputs.perturbed} if inputs.perturbed else {}
    return guide_at(
        denoiser, {NEGATIVE: negative}, combine, settings.guidance_interval, inputs.composition, others
    )


def _combine(settings: GenerationSettings, inputs: GuidanceInputs) -> CombineAt:
    scale = max(settings.guidance_scale, 1.0)
    if settings.guidance == "apg":
        assert inputs.path is not None, "APG needs the path"
        return AdaptiveProjectedGuidance(
            scale,
            inputs.path,
            eta=settings.apg_eta,
            momentum=settings.apg_momentum,
            norm_threshold=settings.apg_norm_threshold,
        )
    if settings.guidance == "pag":
        assert inputs.perturbed is not None, "PAG needs the perturbed denoiser"
        return perturbed_attention_guidance(scale, settings.pag_scale)
    return cfg_zero_star(scale, zero_init_steps=1 if isinstance(inputs.path, FlowPath) else 0)


def _autoguided(denoiser: Denoiser, settings: GenerationSettings, inputs: GuidanceInputs) -> Denoiser:
    if inputs.weak is None:
        raise UserError("guidance is autoguidance without a second model", "name one with --guide-model")
    if not inputs.composition.is_plain:
        raise UserError("autoguidance cannot join prompts with AND", "choose another guidance, or one prompt")
    combine = rescaled(autoguidance(settings.guidance_scale), settings.guidance_rescale)
    return guide_at(denoiser, {}, combine, settings.guidance_interval, others={WEAK: inputs.weak})

"""A second, weaker model for autoguidance (Karras et al. 2024): a smaller one, or an earlier checkpoint."""

from dataclasses import dataclass
from pathlib import Path

import torch

from ldm.errors import UserError
from ldm.models.adapters.folder import identity_of_model
from ldm.models.identity import ADAPTER, DEFAULTS, Identity, changed_parts
from ldm.models.loading.model import load_model
from ldm.models.unet import UNetDenoiser

UNET = "unet"
"""The only part in which a guide may differ."""


@dataclass(frozen=True)
class GuideModel:
    """The denoiser of a second model, and what identifies it."""

    denoiser: UNetDenoiser
    weights_hash: str


def load_guide_model(name: str | Path, model_id: str, own: Identity | None, dtype: torch.dtype) -> GuideModel:
    """Load the denoiser that guides another model.

    Args:
        model_id: of the other model.
        own: its identity, or None if that is not known.

    Raises:
        UserError: it cannot be loaded, or has another text encoder, autoencoder or noise schedule: it would be given
            latents and prompts that mean something else to it.
    """
    loaded = load_model(name, dtype=dtype)
    guide = identity_of_model(loaded.parts, loaded.place)
    not_shared = (UNET, DEFAULTS, ADAPTER)
    changed = changed_parts(own.without(*not_shared), guide.without(*not_shared)) if own else []
    if changed:
        raise UserError(
            f"{name} cannot guide {model_id}: it has another {', '.join(changed)}",
            "use an earlier checkpoint of the same run, or a smaller UNet trained with the same parts",
        )
    return GuideModel(loaded.parts.denoiser.eval().requires_grad_(False), guide.weights_hash)

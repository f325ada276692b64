"""A ControlNet in one safetensors file, in the original layout (`control_model.*`) or by diffusers' names.

Such a file has no configuration. A ControlNet is a copy of the encoder of the UNet that it controls, so it is built as
that UNet is, and every weight must be there and fit.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm.errors import UserError
from ldm.io.files import open_tensors
from ldm.models.control.controlnet import hint_channels
from ldm.models.families.family import Component
from ldm.models.loading.components import build_network
from ldm.models.loading.folder import PICKLES
from ldm.models.parts import ModelParts

PREFIX = "control_model."
MARKS = ("input_hint_block.0.weight", "controlnet_cond_embedding.conv_in.weight")
"""A weight that every ControlNet has, by its name in either layout."""


def read_control_file(path: Path, component: Component, parts: ModelParts, dtype: torch.dtype) -> Any:
    """The `ControlNetModel` in a file, for a model.

    Raises:
        UserError: the file is no such ControlNet, is damaged, or does not fit the model.
    """
    if path.suffix in PICKLES:
        raise UserError(
            f"{path} is a pickle", "only safetensors are read; most ControlNets are published so, too"
        )
    with open_tensors(path) as file:
        names = list(file.keys())
        inside = [name for name in names if name.startswith(PREFIX)] or names
        stored = {name.removeprefix(PREFIX): file.get_tensor(name) for name in inside}
    if not any(mark in stored for mark in MARKS):
        hint = "give a ControlNet for Stable Diffusion, or the folder of a network in the diffusers layout"
        raise UserError(f"{path} holds no ControlNet", hint)
    settings = _settings(component, parts)
    weights = _diffusers_names(stored, settings)
    used = {id(tensor) for tensor in weights.values()}
    left_over = [name for name, tensor in stored.items() if id(tensor) not in used]
    try:
        if left_over:
            hint = "it is for another base model, or of another kind of network"
            raise UserError(f"the ControlNet's weight {left_over[0]} is left over", hint)
        return build_network("ControlNet", component, settings, weights, dtype)
    except UserError as error:
        raise UserError(f"{path} does not fit this model: {error.what}", error.hint) from error


def _settings(component: Component, parts: ModelParts) -> dict[str, Any]:
    """The settings of a ControlNet for the model's UNet; no weight is made."""
    channels = hint_channels(parts.autoencoder.pixels_per_latent)
    with torch.device("meta"):
        network = component.load_class().from_unet(
            parts.denoiser.unet, conditioning_embedding_out_channels=channels, load_weights_from_unet=False
        )
    told = {name: value for name, value in network.config.items() if not name.startswith("_")}
    return told | {"in_channels": parts.denoiser.latent_channels}


def _diffusers_names(stored: dict[str, Tensor], settings: dict[str, Any]) -> dict[str, Tensor]:
    """The weights by diffusers' names, as its own converter gives them; those of no known name are left out."""
    from diffusers.loaders.single_file_utils import convert_controlnet_checkpoint

    if MARKS[1] in stored:
        return stored
    named = convert_controlnet_checkpoint({PREFIX + name: each for name, each in stored.items()}, settings)
    return {name: tensor for name, tensor in named.items() if tensor is not None}

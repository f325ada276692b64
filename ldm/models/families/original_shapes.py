"""The networks that readers of a single file build: what the shapes of its weights say, and what they take for granted.

Four levels of two resnets, 32 groups in every norm, eight heads of attention where the layers around it are
convolutions (Stable Diffusion 1) and 64 channels a head where they are linear (2); 64 channels a head in the text.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from ldm.errors import UserError
from ldm.models.families.original_names import NUM_LEVELS, NUM_RESNETS

HEAD_CHANNELS, NUM_HEADS, NUM_GROUPS = 64, 8, 32
SCALING_FACTOR = 0.18215
LATENT_CHANNELS = 4
VOCABULARY, CONTEXT_LENGTH = 49408, 77

CLASSES: dict[str, Any] = {"unet": UNet2DConditionModel, "vae": AutoencoderKL, "text_encoder": CLIPTextModel}


def unet_settings(channels: Sequence[int], *, text_width: int, linear: bool) -> dict[str, Any]:
    """The settings of the UNet with these channels by level; `linear` as in Stable Diffusion 2."""
    heads = tuple(width // HEAD_CHANNELS for width in channels) if linear else NUM_HEADS
    return {
        "in_channels": LATENT_CHANNELS,
        "out_channels": LATENT_CHANNELS,
        "block_out_channels": tuple(channels),
        "down_block_types": ("CrossAttnDownBlock2D",) * (NUM_LEVELS - 1) + ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * (NUM_LEVELS - 1),
        "layers_per_block": NUM_RESNETS,
        "cross_attention_dim": text_width,
        "attention_head_dim": heads,  # diffusers reads this argument as the number of heads (its issue 2011)
        "use_linear_projection": linear,
        "norm_num_groups": NUM_GROUPS,
    }


def vae_settings(channels: Sequence[int]) -> dict[str, Any]:
    """The settings of the autoencoder with these channels by level."""
    return {
        "latent_channels": LATENT_CHANNELS,
        "block_out_channels": tuple(channels),
        "down_block_types": ("DownEncoderBlock2D",) * NUM_LEVELS,
        "up_block_types": ("UpDecoderBlock2D",) * NUM_LEVELS,
        "layers_per_block": NUM_RESNETS,
        "norm_num_groups": NUM_GROUPS,
        "scaling_factor": SCALING_FACTOR,
        "sample_size": 512,
    }


def text_settings(width: int, *, inner_width: int, num_layers: int, open_clip: bool) -> dict[str, Any]:
    """The settings of the text encoder: CLIP's words and context, and the activation of its layout."""
    return {
        "vocab_size": VOCABULARY,
        "max_position_embeddings": CONTEXT_LENGTH,
        "hidden_size": width,
        "intermediate_size": inner_width,
        "num_hidden_layers": num_layers,
        "num_attention_heads": width // HEAD_CHANNELS,
        "hidden_act": "gelu" if open_clip else "quick_gelu",
        "projection_dim": width,
        "bos_token_id": VOCABULARY - 2,
        "eos_token_id": VOCABULARY - 1,
        "pad_token_id": 0 if open_clip else VOCABULARY - 1,
    }


def read_unet_settings(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """The UNet's settings from its weights, by diffusers' names.

    Raises:
        KeyError: a weight by which they are told is not there.
    """
    first = "down_blocks.0.attentions.0."
    channels = [len(weights[f"down_blocks.{level}.resnets.0.conv1.bias"]) for level in range(NUM_LEVELS)]
    text_width = weights[f"{first}transformer_blocks.0.attn2.to_k.weight"].shape[-1]
    return unet_settings(channels, text_width=text_width, linear=weights[f"{first}proj_in.weight"].ndim == 2)


def read_vae_settings(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """The autoencoder's settings from its weights, by diffusers' names; errors as `read_unet_settings`."""
    names = [f"encoder.down_blocks.{level}.resnets.0.conv1.bias" for level in range(NUM_LEVELS)]
    return vae_settings([len(weights[name]) for name in names])


def read_text_settings(weights: Mapping[str, Tensor], *, open_clip: bool) -> dict[str, Any]:
    """The text encoder's settings from its weights, by transformers' names; errors as `read_unet_settings`."""
    layers = {name.split(".")[2] for name in weights if name.startswith("encoder.layers.")}
    width = len(weights["final_layer_norm.bias"])
    inner_width = len(weights["encoder.layers.0.mlp.fc1.bias"])
    return text_settings(width, inner_width=inner_width, num_layers=len(layers), open_clip=open_clip)


def build_network(
    part: str, settings: Mapping[str, Any], weights: Mapping[str, Tensor], dtype: torch.dtype
) -> Any:
    """A network with these weights, on the CPU; nothing is drawn at random, so a missing weight is an error.

    Args:
        part: "unet", "vae" or "text_encoder".
        settings: of the functions above.
        weights: by the names of diffusers or transformers, all of them and no other.

    Raises:
        UserError: naming a weight that is missing, left over or of another shape than the settings say.
    """
    with torch.device("meta"):
        network = _make(part, settings)
    wanted = network.state_dict()
    for name in sorted(wanted.keys() ^ weights.keys()):
        kind = "is missing" if name in wanted else "is left over"
        raise UserError(
            f"the {part}'s weight {name} {kind}", "the file is incomplete or of another structure"
        )
    for name, tensor in wanted.items():
        if weights[name].shape != tensor.shape:
            shapes = f"{list(weights[name].shape)}, here it must be {list(tensor.shape)}"
            raise UserError(
                f"the {part}'s weight {name} has shape {shapes}", "the file is of another structure"
            )
    network.load_state_dict({name: weights[name].to(dtype) for name in wanted}, assign=True)
    _count_positions(network)
    return network.eval().requires_grad_(False)


def _make(part: str, settings: Mapping[str, Any]) -> nn.Module:
    try:
        network: nn.Module = CLASSES[part](
            **({"config": CLIPTextConfig(**settings)} if part == "text_encoder" else settings)
        )
    except (ValueError, ZeroDivisionError, RuntimeError, TypeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"the {part} cannot be built ({reason})", "its widths fit no such network") from error
    return network


def _count_positions(network: nn.Module) -> None:
    """The one buffer that is no weight: the numbers of the positions, 0, 1, 2 ..."""
    for module in network.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.is_meta:
                assert name == "position_ids"
                module.register_buffer(name, torch.arange(buffer.shape[-1])[None], persistent=False)

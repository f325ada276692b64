"""The settings of the networks in a single file: from the shapes of its weights, and from what all readers assume.

Four levels of two resnets; 32 groups in every norm; eight attention heads where the layers around the attention are
convolutions (Stable Diffusion 1), 64 channels per head where they are linear (2) and in the text encoder.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from ldm.models.families.original_names import NUM_LEVELS, NUM_RESNETS, XL_LEVELS

HEAD_CHANNELS, NUM_HEADS, NUM_GROUPS = 64, 8, 32
SCALING_FACTOR, XL_SCALING_FACTOR = 0.18215, 0.13025
SIZE_CHANNELS = 256
"""Of the sinusoidal embedding of each number that Stable Diffusion XL's UNet is told."""
LATENT_CHANNELS = 4
INPUT_CHANNELS = (LATENT_CHANNELS, 2 * LATENT_CHANNELS, 2 * LATENT_CHANNELS + 1)
"""The input channels of a UNet from text, for editing and for inpainting: readers tell the task by the first layer."""
VOCABULARY, CONTEXT_LENGTH = 49408, 77


def unet_settings(
    channels: Sequence[int], *, text_width: int, linear: bool, in_channels: int = LATENT_CHANNELS
) -> dict[str, Any]:
    """The settings of a UNet with these channels per level; `linear` is for Stable Diffusion 2."""
    heads = tuple(width // HEAD_CHANNELS for width in channels) if linear else NUM_HEADS
    return {
        "in_channels": in_channels,
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


def xl_unet_settings(
    channels: Sequence[int],
    *,
    text_width: int,
    depths: Sequence[int],
    added_width: int,
    in_channels: int = LATENT_CHANNELS,
) -> dict[str, Any]:
    """The settings of a UNet of Stable Diffusion XL.

    Args:
        channels: per level.
        depths: transformer blocks of each level; 0 for one that does not attend to the prompt.
        added_width: of the pooled text and the time ids.
    """
    down = tuple("CrossAttnDownBlock2D" if depth else "DownBlock2D" for depth in depths)
    up = tuple("CrossAttnUpBlock2D" if depth else "UpBlock2D" for depth in reversed(depths))
    common = unet_settings(channels, text_width=text_width, linear=True, in_channels=in_channels)
    return common | {
        "down_block_types": down,
        "up_block_types": up,
        "transformer_layers_per_block": tuple(depth or 1 for depth in depths),
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": SIZE_CHANNELS,
        "projection_class_embeddings_input_dim": added_width,
    }


def vae_settings(channels: Sequence[int], scaling_factor: float = SCALING_FACTOR) -> dict[str, Any]:
    """The settings of an autoencoder with these channels per level."""
    return {
        "latent_channels": LATENT_CHANNELS,
        "block_out_channels": tuple(channels),
        "down_block_types": ("DownEncoderBlock2D",) * NUM_LEVELS,
        "up_block_types": ("UpDecoderBlock2D",) * NUM_LEVELS,
        "layers_per_block": NUM_RESNETS,
        "norm_num_groups": NUM_GROUPS,
        "scaling_factor": scaling_factor,
        "sample_size": 512,
    }


def text_settings(
    width: int, *, inner_width: int, num_layers: int, hidden_act: str, pad_token_id: int
) -> dict[str, Any]:
    """The settings of a text encoder with CLIP's vocabulary and context."""
    return {
        "vocab_size": VOCABULARY,
        "max_position_embeddings": CONTEXT_LENGTH,
        "hidden_size": width,
        "intermediate_size": inner_width,
        "num_hidden_layers": num_layers,
        "num_attention_heads": width // HEAD_CHANNELS,
        "hidden_act": hidden_act,
        "projection_dim": width,
        "bos_token_id": VOCABULARY - 2,
        "eos_token_id": VOCABULARY - 1,
        "pad_token_id": pad_token_id,
    }


def read_unet_settings(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """The UNet's settings from its weights, by diffusers' names.

    Raises:
        KeyError: a weight that they are read from is missing.
    """
    first = "down_blocks.0.attentions.0."
    channels = [len(weights[f"down_blocks.{level}.resnets.0.conv1.bias"]) for level in range(NUM_LEVELS)]
    text_width = weights[f"{first}transformer_blocks.0.attn2.to_k.weight"].shape[-1]
    return unet_settings(
        channels,
        text_width=text_width,
        linear=weights[f"{first}proj_in.weight"].ndim == 2,
        in_channels=weights["conv_in.weight"].shape[1],
    )


def read_xl_unet_settings(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """The settings of Stable Diffusion XL's UNet from its weights; errors as `read_unet_settings`."""
    channels = [len(weights[f"down_blocks.{level}.resnets.0.conv1.bias"]) for level in range(XL_LEVELS)]
    depths = [_depth(weights, f"down_blocks.{level}.attentions.0.") for level in range(XL_LEVELS)]
    first = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight"
    return xl_unet_settings(
        channels,
        text_width=weights[first].shape[-1],
        depths=depths,
        added_width=weights["add_embedding.linear_1.weight"].shape[1],
        in_channels=weights["conv_in.weight"].shape[1],
    )


def _depth(weights: Mapping[str, Tensor], attention: str) -> int:
    """The number of transformer blocks of an attention."""
    start = f"{attention}transformer_blocks."
    return len({name[len(start) :].partition(".")[0] for name in weights if name.startswith(start)})


def read_vae_settings(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """The autoencoder's settings from its weights, by diffusers' names; errors as `read_unet_settings`."""
    names = [f"encoder.down_blocks.{level}.resnets.0.conv1.bias" for level in range(NUM_LEVELS)]
    return vae_settings([len(weights[name]) for name in names])


def read_projected_text_settings(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """The settings of Stable Diffusion XL's second text encoder from its weights; errors as `read_unet_settings`."""
    own = {name.removeprefix("text_model."): tensor for name, tensor in weights.items()}
    settings = read_text_settings(own, hidden_act="gelu", pad_token_id=0)
    return settings | {"projection_dim": len(weights["text_projection.weight"])}


def read_text_settings(
    weights: Mapping[str, Tensor], *, hidden_act: str, pad_token_id: int
) -> dict[str, Any]:
    """The text encoder's settings from its weights, by transformers' names; errors as `read_unet_settings`."""
    layers = {name.split(".")[2] for name in weights if name.startswith("encoder.layers.")}
    width = len(weights["final_layer_norm.bias"])
    inner_width = len(weights["encoder.layers.0.mlp.fc1.bias"])
    return text_settings(
        width,
        inner_width=inner_width,
        num_layers=len(layers),
        hidden_act=hidden_act,
        pad_token_id=pad_token_id,
    )

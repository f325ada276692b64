"""Networks with random weights, built from settings; the classes are diffusers', so every program reads them."""

from collections.abc import Sequence
from typing import Annotated, Literal, Self

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from pydantic import Field, model_validator
from torch import nn

from ldm.config import Settings
from ldm.models.vae import downscale

Channels = Annotated[int, Field(ge=1)]


class AutoencoderShape(Settings):
    """The shape of an AutoencoderKL."""

    block_out_channels: tuple[Channels, ...] = Field(
        (24, 48, 96), min_length=1, description="one per level; each level halves H and W"
    )
    layers_per_block: int = Field(1, ge=1)
    latent_channels: int = Field(4, ge=1)
    norm_num_groups: int = Field(8, ge=1, description="must divide every level's channels")
    mid_block_add_attention: bool = Field(False, description="self-attention at the lowest resolution")

    @model_validator(mode="after")
    def _check_groups(self) -> Self:
        _check_groups(self.block_out_channels, self.norm_num_groups)
        return self

    @property
    def downscale(self) -> int:
        """Pixels per latent along an axis."""
        return downscale(self.block_out_channels)


def _check_groups(channels: Sequence[int], num_groups: int) -> None:
    undivided = [each for each in channels if each % num_groups]
    if undivided:
        raise ValueError(
            f"norm_num_groups = {num_groups} does not divide {undivided[0]} of block_out_channels: choose multiples "
            "of it"
        )


class DenoiserShape(Settings):
    """The shape of a UNet2DConditionModel."""

    block_out_channels: tuple[Channels, ...] = Field(
        (64, 128, 256), min_length=1, description="one per level; each level halves h and w"
    )
    attention: tuple[bool, ...] = Field((False, True, True), description="which levels attend to the prompt")
    layers_per_block: int = Field(1, ge=1)
    attention_head_dim: int = Field(64, ge=1, description="channels per attention head")
    norm_num_groups: int = Field(16, ge=1, description="must divide every level's channels")

    @model_validator(mode="after")
    def _check_levels(self) -> Self:
        _check_groups(self.block_out_channels, self.norm_num_groups)
        given, levels = len(self.attention), len(self.block_out_channels)
        if given != levels:
            raise ValueError(
                f"attention has {given} levels, block_out_channels {levels}: give attention one true or false per level"
            )
        return self


def make_autoencoder(shape: AutoencoderShape, sample_size_px: int) -> AutoencoderKL:
    """An AutoencoderKL with scaling factor 1; the real one is measured after training."""
    levels = len(shape.block_out_channels)
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=shape.block_out_channels,
        layers_per_block=shape.layers_per_block,
        latent_channels=shape.latent_channels,
        norm_num_groups=shape.norm_num_groups,
        mid_block_add_attention=shape.mid_block_add_attention,
        sample_size=sample_size_px,
        scaling_factor=1.0,
    )


def make_unet(
    shape: DenoiserShape,
    *,
    latent_channels: int,
    latent_size: int,
    text_width: int,
    concat_channels: int = 0,
    num_class_labels: int = 0,
    learn_variance: bool = False,
) -> UNet2DConditionModel:
    """A cross-attention UNet for latents [B, latent_channels, h, w] and prompts [B, L, text_width].

    Args:
        latent_size: h and w by default.
        concat_channels: further input channels, see `ldm.types.Conditioning.concat`.
        num_class_labels: of `Conditioning.class_labels`, see `add_class_labels`.
        learn_variance: predict as many further channels, see `ldm.diffusion.learned_variance`.
    """
    heads = tuple(max(1, channels // shape.attention_head_dim) for channels in shape.block_out_channels)
    unet = UNet2DConditionModel(
        sample_size=latent_size,
        in_channels=latent_channels + concat_channels,
        out_channels=2 * latent_channels if learn_variance else latent_channels,
        down_block_types=tuple(_down(attends) for attends in shape.attention),
        up_block_types=tuple(_up(attends) for attends in reversed(shape.attention)),
        block_out_channels=shape.block_out_channels,
        layers_per_block=shape.layers_per_block,
        cross_attention_dim=text_width,
        # diffusers reads this argument as the number of heads per level (its issue 2011)
        attention_head_dim=heads,
        norm_num_groups=shape.norm_num_groups,
    )
    if num_class_labels:
        add_class_labels(unet, num_class_labels)
    return unet


def widen_input(unet: UNet2DConditionModel, in_channels: int) -> None:
    """Give a UNet more input channels, with zero weights, so that they do not change its output at first.

    InstructPix2Pix starts like this from a text-to-image model (Brooks et al. 2023, section 3.2).
    """
    narrow = unet.conv_in
    wide = nn.Conv2d(in_channels, narrow.out_channels, narrow.kernel_size, padding=narrow.padding).to(
        narrow.weight
    )
    weight = torch.zeros_like(wide.weight)
    weight[:, : narrow.in_channels] = narrow.weight.detach()
    wide.load_state_dict({**narrow.state_dict(), "weight": weight})
    unet.conv_in = wide
    unet.register_to_config(in_channels=in_channels)


def add_class_labels(unet: UNet2DConditionModel, num_labels: int) -> None:
    """Give a UNet a table of class labels, all zero, so that they do not change its output at first.

    The embedding of a label is added to that of the timestep.
    """
    last = unet.time_embedding.linear_2
    table = nn.Embedding(num_labels, last.out_features).to(last.weight)
    nn.init.zeros_(table.weight)
    unet.class_embedding = table
    unet.register_to_config(num_class_embeds=num_labels)


def add_guidance_embedding(unet: UNet2DConditionModel, width: int = 256) -> None:
    """Let a UNet be told the guidance scale, with zero weights, so that it does not change its output at first.

    Args:
        width: of the scale's embedding, see `ldm.models.unet.guidance_embedding`.
    """
    first = unet.time_embedding.linear_1
    layer = nn.Linear(width, first.in_features, bias=False).to(first.weight)
    nn.init.zeros_(layer.weight)
    unet.time_embedding.cond_proj = layer
    unet.register_to_config(time_cond_proj_dim=width)


def _down(attends: bool) -> Literal["CrossAttnDownBlock2D", "DownBlock2D"]:
    return "CrossAttnDownBlock2D" if attends else "DownBlock2D"


def _up(attends: bool) -> Literal["CrossAttnUpBlock2D", "UpBlock2D"]:
    return "CrossAttnUpBlock2D" if attends else "UpBlock2D"

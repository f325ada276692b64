"""A small model of Stable Diffusion XL's kind with random weights: two text encoders, and a UNet that is told sizes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from ldm.models.clip_vocabulary import learn_merges, make_tokenizer
from ldm.models.families.stable_diffusion_xl import SDXL
from ldm.models.loading.model import ModelParts
from ldm.models.parts import assemble

TEXT_WIDTH, POOLED_WIDTH, ID_WIDTH = 64, 64, 32
"""Channels of each text encoder, of the pooled text, and of the embedding of each time id."""


def make_small_xl(
    vae: AutoencoderKL,
    captions: Sequence[str],
    scheduler_config: dict[str, Any],
    *,
    size_px: int,
    seed: int = 0,
    block_out_channels: tuple[int, int] = (48, 96),
    context_length: int = 16,
) -> ModelParts:
    """A fresh model around a trained autoencoder, for images of `size_px` and the words of `captions`.

    Args:
        scheduler_config: the noise schedule and prediction type.
        seed: of the random weights.
        context_length: tokens per prompt, start and end included.

    Raises:
        UserError: the parts do not fit each other.
    """
    tokenizer = make_tokenizer(learn_merges(captions, 200), context_length)
    pixels_per_latent = 2 ** (len(vae.config.block_out_channels) - 1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        components = {
            "unet": _unet(size_px // pixels_per_latent, vae.config.latent_channels, block_out_channels),
            "vae": vae,
            "text_encoder": CLIPTextModel(_text_config(tokenizer, "quick_gelu")),
            "text_encoder_2": CLIPTextModelWithProjection(_text_config(tokenizer, "gelu")),
            "tokenizer": tokenizer,
            "tokenizer_2": tokenizer,
        }
    return assemble(Path("fresh"), SDXL, components, scheduler_config)


def _text_config(tokenizer: CLIPTokenizer, hidden_act: str) -> CLIPTextConfig:
    """Three layers, of which the UNet reads the second, as it reads the last but one of the large models."""
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_WIDTH,
        intermediate_size=2 * TEXT_WIDTH,
        num_hidden_layers=3,
        num_attention_heads=2,
        max_position_embeddings=tokenizer.model_max_length,
        hidden_act=hidden_act,
        projection_dim=POOLED_WIDTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )


def _unet(latent_size: int, latent_channels: int, block_out_channels: tuple[int, int]) -> Any:
    """Two levels, of which the second attends to the prompt."""
    return UNet2DConditionModel(
        sample_size=latent_size,
        in_channels=latent_channels,
        out_channels=latent_channels,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=block_out_channels,
        layers_per_block=1,
        norm_num_groups=16,
        cross_attention_dim=2 * TEXT_WIDTH,
        attention_head_dim=tuple(channels // 32 for channels in block_out_channels),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=ID_WIDTH,
        projection_class_embeddings_input_dim=POOLED_WIDTH + 6 * ID_WIDTH,
    )

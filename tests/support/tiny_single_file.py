"""Narrow models with the structure of Stable Diffusion 1, 2 and XL and random weights, for the single-file layout.

Four levels of two resnets, 32 groups, 64 channels per head in the text encoder, and CLIP's vocabulary make them larger
than those of `tests.support.tiny_models`.
"""

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from ldm.models.clip import ClipTextEncoder
from ldm.models.clip_tokenizer import clip_tokenizer
from ldm.models.families.stable_diffusion_xl import SDXL
from ldm.models.loading.folder import Defaults
from ldm.models.parts import ModelParts, assemble
from ldm.models.unet import UNetDenoiser
from ldm.models.vae import KLAutoencoder
from tests.support.tiny_models import SD1_SCHEDULER, SD2_SCHEDULER, SDXL_SCHEDULER

FOUR_DOWN = ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",)
FOUR_UP = ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3
SIZE_PX = 64


def make_narrow_sd1(scheduler_config: dict[str, Any] = SD1_SCHEDULER, **unet: Any) -> ModelParts:
    """Eight heads at every level, 1x1 convolutions around the attention, quick GELU; `unet` changes its settings."""
    changed = {"block_out_channels": (32, 32, 64, 64), "attention_head_dim": 8, **unet}
    return _make(scheduler_config, 64, "quick_gelu", "<|endoftext|>", changed)


def make_narrow_sd2(scheduler_config: dict[str, Any] = SD2_SCHEDULER, **unet: Any) -> ModelParts:
    """64 channels per head, linear layers around the attention, GELU, padding with `!`."""
    heads = {"attention_head_dim": (1, 1, 2, 2), "use_linear_projection": True}
    changed = {"block_out_channels": (64, 64, 128, 128), **heads, **unet}
    return _make(scheduler_config, 128, "gelu", "!", changed)


def make_narrow_sdxl(scheduler_config: dict[str, Any] = SDXL_SCHEDULER) -> ModelParts:
    """Two text encoders of one and two heads, three levels of which the first does not attend to the prompt."""
    torch.manual_seed(0)
    tokenizers = [clip_tokenizer(pad) for pad in ("<|endoftext|>", "!")]
    first = CLIPTextModel(_text_config(tokenizers[0], 64, "quick_gelu"))
    second = CLIPTextModelWithProjection(_text_config(tokenizers[1], 128, "gelu", projection_dim=40))
    unet = UNet2DConditionModel(
        sample_size=SIZE_PX // 8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(64, 64, 128),
        layers_per_block=2,
        norm_num_groups=32,
        cross_attention_dim=64 + 128,
        attention_head_dim=(1, 1, 2),
        transformer_layers_per_block=(1, 1, 2),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=40 + 6 * 256,
    )
    components = {
        "unet": unet,
        "vae": _narrow_vae(scaling_factor=0.13025),
        "text_encoder": first,
        "text_encoder_2": second,
        "tokenizer": tokenizers[0],
        "tokenizer_2": tokenizers[1],
    }
    parts = assemble(Path("narrow"), SDXL, components, scheduler_config)
    parts.defaults = Defaults(height=SIZE_PX, width=SIZE_PX, num_inference_steps=2)
    return _with_random_norms(parts)


def _text_config(tokenizer: Any, width: int, activation: str, **settings: Any) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=width // 64,
        max_position_embeddings=77,
        hidden_act=activation,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        **settings,
    )


def _narrow_vae(**settings: Any) -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(32, 32, 32, 64),
        layers_per_block=2,
        latent_channels=4,
        **settings,
    )


def _make(
    scheduler_config: dict[str, Any], width: int, activation: str, pad_token: str, unet: dict[str, Any]
) -> ModelParts:
    torch.manual_seed(0)
    tokenizer = clip_tokenizer(pad_token)
    text_model = CLIPTextModel(_text_config(tokenizer, width, activation))
    settings = {
        "sample_size": SIZE_PX // 8,
        "down_block_types": FOUR_DOWN,
        "up_block_types": FOUR_UP,
        "layers_per_block": 2,
        "norm_num_groups": 32,
        "cross_attention_dim": width,
    }
    vae = _narrow_vae()
    parts = ModelParts(
        UNetDenoiser(UNet2DConditionModel(**{**settings, **unet})),
        KLAutoencoder(vae),
        ClipTextEncoder(tokenizer, text_model),
        scheduler_config,
        Defaults(height=SIZE_PX, width=SIZE_PX, num_inference_steps=2),
    )
    return _with_random_norms(parts)


def _with_random_norms(parts: ModelParts) -> ModelParts:
    """Make norms and biases random too, so that swapped weights are noticed."""
    for module in parts.modules().values():
        for parameter in module.parameters():
            if parameter.ndim == 1:
                parameter.data += 0.05 * torch.randn(parameter.shape)
        module.eval().requires_grad_(False)
    return parts

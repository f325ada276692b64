"""Tiny Stable Diffusion models of the stock classes with random weights, for the tests."""

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from ldm.models.clip import ClipTextEncoder
from ldm.models.clip_vocabulary import learn_merges, write_tokenizer
from ldm.models.families.family import Family
from ldm.models.families.stable_diffusion_xl import SDXL, SDXL_REFINER
from ldm.models.loading.folder import Defaults
from ldm.models.loading.model import ModelParts
from ldm.models.parts import assemble
from ldm.models.unet import UNetDenoiser
from ldm.models.vae import KLAutoencoder

CONTEXT_LENGTH = 16
CAPTIONS = ["a red apple on a table", "the large blue square above a small green circle"]

SD1_SCHEDULER = {
    "_class_name": "PNDMScheduler",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
}
"""As in Stable Diffusion 1, which does not name the default prediction type, epsilon."""

SD2_SCHEDULER = {**SD1_SCHEDULER, "_class_name": "DDIMScheduler", "prediction_type": "v_prediction"}
SDXL_SCHEDULER = {**SD1_SCHEDULER, "_class_name": "EulerDiscreteScheduler"}
ZERO_SNR_SCHEDULER = {
    **SD2_SCHEDULER,
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
}


def make_tokenizer(folder: Path, pad_token: str = "<|endoftext|>") -> CLIPTokenizer:
    """A CLIP tokenizer with a vocabulary from two captions and 16 tokens per prompt."""
    write_tokenizer(folder, learn_merges(CAPTIONS, 30), CONTEXT_LENGTH)
    return CLIPTokenizer.from_pretrained(folder, pad_token=pad_token)


def make_sd1(folder: Path) -> ModelParts:
    """Like SD1: epsilon, one number of heads, 1x1 convolutions around the attention, quick GELU."""
    return _make(folder, SD1_SCHEDULER, text_width=32, attention_head_dim=2)


def make_large_images(folder: Path) -> ModelParts:
    """Like `make_sd1`, but with 16 x 16 pixels for each latent: images of 256 x 256 pixels take no time."""
    parts = make_sd1(folder)
    vae = _tiny_vae(num_levels=5)
    parts.autoencoder = KLAutoencoder(vae.eval().requires_grad_(False))
    parts.defaults = Defaults(height=256, width=256, num_inference_steps=1)
    return parts


def make_sd2(folder: Path, scheduler_config: dict[str, Any] = SD2_SCHEDULER) -> ModelParts:
    """Like SD2: v-prediction, heads per level, linear layers around the attention, padding with `!`."""
    return _make(
        folder,
        scheduler_config,
        text_width=48,
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        hidden_act="gelu",
        pad_token="!",
    )


def _make(
    folder: Path,
    scheduler_config: dict[str, Any],
    *,
    text_width: int,
    attention_head_dim: int | tuple[int, ...],
    use_linear_projection: bool = False,
    hidden_act: str = "quick_gelu",
    pad_token: str = "<|endoftext|>",
) -> ModelParts:
    torch.manual_seed(0)
    tokenizer = make_tokenizer(folder, pad_token)
    text_config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=text_width,
        intermediate_size=2 * text_width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=CONTEXT_LENGTH,
        hidden_act=hidden_act,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    unet = UNet2DConditionModel(
        sample_size=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(16, 32),
        layers_per_block=1,
        norm_num_groups=8,
        cross_attention_dim=text_width,
        attention_head_dim=attention_head_dim,
        use_linear_projection=use_linear_projection,
    )
    vae = _tiny_vae()
    parts = ModelParts(
        UNetDenoiser(unet),
        KLAutoencoder(vae),
        ClipTextEncoder(tokenizer, CLIPTextModel(text_config)),
        scheduler_config,
        Defaults(height=16, width=16, num_inference_steps=4),
    )
    for module in parts.modules().values():
        module.eval().requires_grad_(False)
    return parts


def make_sdxl(folder: Path, *, scheduler_config: dict[str, Any] = SDXL_SCHEDULER) -> ModelParts:
    """Like SDXL: two text encoders of 32 and 24 channels, of which the second has a projection, and time ids."""
    torch.manual_seed(0)
    tokenizers = [
        make_tokenizer(folder / str(number), pad) for number, pad in ((1, "<|endoftext|>"), (2, "!"))
    ]
    first = CLIPTextModel(_text_config(tokenizers[0], 32, hidden_act="quick_gelu"))
    second = CLIPTextModelWithProjection(
        _text_config(tokenizers[1], 24, hidden_act="gelu", projection_dim=20)
    )
    return _assembled(
        SDXL,
        {
            "unet": _xl_unet(text_width=32 + 24, added_width=20 + 6 * 8),
            "vae": _tiny_vae(scaling_factor=0.13025),
            "text_encoder": first,
            "text_encoder_2": second,
            "tokenizer": tokenizers[0],
            "tokenizer_2": tokenizers[1],
        },
        scheduler_config,
    )


def make_refiner(folder: Path) -> ModelParts:
    """Like SDXL's refiner: the second text encoder alone, and an aesthetic score among five time ids."""
    torch.manual_seed(0)
    tokenizer = make_tokenizer(folder, "!")
    second = CLIPTextModelWithProjection(_text_config(tokenizer, 24, hidden_act="gelu", projection_dim=20))
    components = {
        "unet": _xl_unet(text_width=24, added_width=20 + 5 * 8),
        "vae": _tiny_vae(scaling_factor=0.13025),
        "text_encoder_2": second,
        "tokenizer_2": tokenizer,
    }
    return _assembled(SDXL_REFINER, components, SDXL_SCHEDULER)


def _assembled(family: Family, components: dict[str, Any], scheduler_config: dict[str, Any]) -> ModelParts:
    parts = assemble(Path("tiny"), family, components, scheduler_config)
    parts.defaults = Defaults(num_inference_steps=4).over(parts.defaults)
    return parts


def _text_config(tokenizer: Any, width: int, **settings: Any) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=3,
        num_attention_heads=2,
        max_position_embeddings=CONTEXT_LENGTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        **settings,
    )


def _xl_unet(*, text_width: int, added_width: int) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(16, 32),
        layers_per_block=1,
        norm_num_groups=8,
        cross_attention_dim=text_width,
        attention_head_dim=(2, 4),
        transformer_layers_per_block=(1, 2),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=added_width,
    )


def _tiny_vae(*, num_levels: int = 2, **settings: Any) -> AutoencoderKL:
    """Each level but the last halves the size."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * num_levels,
        up_block_types=("UpDecoderBlock2D",) * num_levels,
        block_out_channels=(8,) * (num_levels - 1) + (16,),
        norm_num_groups=4,
        latent_channels=4,
        sample_size=16,
        **settings,
    )

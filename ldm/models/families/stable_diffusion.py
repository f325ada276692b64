"""Stable Diffusion 1 and 2, and the models trained here, which have the same components.

Both are one CLIP text encoder, one UNet and one AutoencoderKL. The text encoders differ: OpenAI's CLIP with quick GELU
in 1, open_clip's ViT-H with GELU in 2, of which the last layer is not used.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from ldm.diffusion.scheduler_names import SCHEDULERS
from ldm.errors import warn
from ldm.models.clip import ClipTextEncoder
from ldm.models.families.family import (
    Component,
    Configs,
    Family,
    FileContent,
    LoraNames,
    OriginalNetwork,
    SingleFile,
    Width,
)
from ldm.models.families.original_names import (
    CLIP,
    LAYERS_OF_VIT_H,
    OPEN_CLIP,
    UNET,
    VAE,
    clip_from_original,
    clip_to_original,
    open_clip_from_original,
    open_clip_to_original,
    unet_from_original,
    unet_layer_in_file,
    unet_to_original,
    vae_from_original,
    vae_to_original,
)
from ldm.models.families.original_shapes import (
    INPUT_CHANNELS,
    LATENT_CHANNELS,
    SCALING_FACTOR,
    VOCABULARY,
    read_text_settings,
    read_unet_settings,
    read_vae_settings,
    text_settings,
    unet_settings,
    vae_settings,
)

UNET_COMPONENT = Component(
    "diffusers",
    ("UNet2DConditionModel",),
    "diffusers.models.unets.unet_2d_condition",
    stem="diffusion_pytorch_model",
)
VAE_COMPONENT = Component(
    "diffusers",
    ("AutoencoderKL",),
    "diffusers.models.autoencoders.autoencoder_kl",
    stem="diffusion_pytorch_model",
    keep_float32=True,  # it may overflow in half precision
)
CLIP_COMPONENT = Component(
    "transformers", ("CLIPTextModel",), "transformers.models.clip.modeling_clip", stem="model"
)
TOKENIZER_COMPONENT = Component(
    "transformers", ("CLIPTokenizer", "CLIPTokenizerFast"), "transformers.models.clip.tokenization_clip"
)
SCHEDULER_COMPONENT = Component(
    "diffusers", tuple(sorted({name for entry in SCHEDULERS.values() for name in entry.class_names}))
)

_TELLING = f"{UNET}output_blocks.11.1.transformer_blocks.0.norm1.bias"
CHOICE = "If the images are noise, choose with --prediction-type."
_DEVIATION_OF_V = 0.09  # ComfyUI's threshold: above it, the norm is that of Stable Diffusion 2's v-prediction


def _encoder(components: Mapping[str, Any], settings: Mapping[str, Any]) -> ClipTextEncoder:
    return ClipTextEncoder(components["tokenizer"], components["text_encoder"])


def _widths(configs: Configs) -> Iterator[Width]:
    yield latent_width(configs)
    yield Width(
        "text width", text_width(configs["unet"]), configs["text_encoder"].get("hidden_size"), "text_encoder"
    )


def latent_width(configs: Configs) -> Width:
    """The latent channels that UNet and autoencoder must agree on."""
    unet, vae = configs["unet"], configs["vae"]
    return Width("latent channels", _latent_channels(unet), vae.get("latent_channels"), "vae")


def text_width(unet: Mapping[str, Any]) -> Any:
    """The width of the embeddings that a UNet attends to."""
    width = unet.get("cross_attention_dim")
    return width[0] if isinstance(width, list | tuple) and width else width


def _latent_channels(unet: Mapping[str, Any]) -> Any:
    """A UNet has more inputs if it takes images as well, and more outputs if it has learned a variance."""
    given, made = unet.get("in_channels"), unet.get("out_channels")
    return min(given, made) if isinstance(given, int) and isinstance(made, int) else made


def _assumed_unet(configs: Configs, *, linear: bool) -> dict[str, Any]:
    unet, width = configs["unet"], configs["text_encoder"]["hidden_size"]
    given = unet.get("in_channels")
    return unet_settings(
        unet["block_out_channels"],
        text_width=width,
        linear=linear,
        in_channels=given if given in INPUT_CHANNELS else LATENT_CHANNELS,
    )


def _assumed_vae(configs: Configs) -> dict[str, Any]:
    return vae_settings(configs["vae"]["block_out_channels"])


def _assumed_text(configs: Configs, *, hidden_act: str, pad_token_id: int) -> dict[str, Any]:
    text = configs["text_encoder"]
    return text_settings(
        text["hidden_size"],
        inner_width=text["intermediate_size"],
        num_layers=text["num_hidden_layers"],
        hidden_act=hidden_act,
        pad_token_id=pad_token_id,
    )


def _tokenizer(**options: str) -> dict[str, Any]:
    from ldm.models.clip_tokenizer import clip_tokenizer  # imports transformers

    return {"tokenizer": clip_tokenizer(**options)}


def _has(*prefixes: str) -> Callable[[Collection[str]], bool]:
    """A test of names: each of these is the beginning of one."""
    return lambda names: all(any(name.startswith(prefix) for name in names) for prefix in prefixes)


def _guess_from_weights(content: FileContent) -> str:
    """What a Stable Diffusion 2 predicts, from the spread of one bias."""
    telling = content.weights.get(_TELLING, torch.zeros(2)).float()
    guess = "v_prediction" if telling.numel() > 1 and telling.std() > _DEVIATION_OF_V else "epsilon"
    warn(
        f"{content.path.name} does not say what it predicts; by its weights it is taken for {guess}. {CHOICE}"
    )
    return guess


def _assume_epsilon(content: FileContent) -> str:
    """What a Stable Diffusion 1 predicts where nothing tells, as other programs assume."""
    warn(f"{content.path.name} does not say what it predicts; as usual, it is taken for epsilon. {CHOICE}")
    return "epsilon"


def _is_open_clip(configs: Configs) -> bool:
    """Only the activation tells the text encoders apart at every width."""
    return configs.get("text_encoder", {}).get("hidden_act") == "gelu"


_UNET_IN_FILE = OriginalNetwork(
    UNET, unet_to_original, unet_from_original, read_unet_settings, partial(_assumed_unet, linear=False)
)
_VAE_IN_FILE = OriginalNetwork(VAE, vae_to_original, vae_from_original, read_vae_settings, _assumed_vae)

_UNET_LORA = LoraNames("lora_unet_", comfy_prefixes=("diffusion_model.",), original_name=unet_layer_in_file)
_TEXT_LORA = LoraNames(
    "lora_te_", is_text=True, comfy_prefixes=("text_encoders.clip_l.transformer.", "clip_l.transformer.")
)

SD1 = Family(
    name="sd1",
    title="Stable Diffusion 1",
    pipeline_class="StableDiffusionPipeline",
    components={
        "unet": UNET_COMPONENT,
        "vae": VAE_COMPONENT,
        "text_encoder": CLIP_COMPONENT,
        "tokenizer": TOKENIZER_COMPONENT,
        "scheduler": SCHEDULER_COMPONENT,
    },
    text_encoder=_encoder,
    matches=lambda configs: not _is_open_clip(configs),
    widths=_widths,
    lora={"unet": _UNET_LORA, "text_encoder": _TEXT_LORA},
    optional=("safety_checker", "feature_extractor", "image_encoder"),
    ignored=("depth_estimator",),
    pipeline_settings={"requires_safety_checker": False},
    task_pipelines={
        "inpaint": "StableDiffusionInpaintPipeline",
        "edit": "StableDiffusionInstructPix2PixPipeline",
        "depth": "StableDiffusionDepth2ImgPipeline",
    },
    single_file=SingleFile(
        matches=_has(UNET),
        networks={
            "unet": _UNET_IN_FILE,
            "vae": _VAE_IN_FILE,
            "text_encoder": OriginalNetwork(
                CLIP,
                clip_to_original,
                clip_from_original,
                partial(read_text_settings, hidden_act="quick_gelu", pad_token_id=VOCABULARY - 1),
                partial(_assumed_text, hidden_act="quick_gelu", pad_token_id=VOCABULARY - 1),
            ),
        },
        tokenizers=_tokenizer,
        scaling_factor=SCALING_FACTOR,
        scheduler_class="PNDMScheduler",
        guess_prediction_type=_assume_epsilon,
        sample_size={"epsilon": 64, "v_prediction": 64},
        architecture=dict.fromkeys(("epsilon", "v_prediction"), "stable-diffusion-v1"),
        task_architecture={"inpaint": "stable-diffusion-v1-inpainting"},
    ),
)

_FILE = SD1.single_file
assert _FILE is not None

SD2 = replace(
    SD1,
    name="sd2",
    title="Stable Diffusion 2",
    matches=_is_open_clip,
    lora={
        "unet": _UNET_LORA,
        "text_encoder": replace(
            _TEXT_LORA, comfy_prefixes=("text_encoders.clip_h.transformer.", "clip_h.transformer.")
        ),
    },
    single_file=replace(
        _FILE,
        matches=_has(UNET, OPEN_CLIP),
        networks={
            "unet": replace(_UNET_IN_FILE, assumed_settings=partial(_assumed_unet, linear=True)),
            "vae": _VAE_IN_FILE,
            "text_encoder": OriginalNetwork(
                OPEN_CLIP,
                open_clip_to_original,
                open_clip_from_original,
                partial(read_text_settings, hidden_act="gelu", pad_token_id=0),
                partial(_assumed_text, hidden_act="gelu", pad_token_id=0),
                max_layers=LAYERS_OF_VIT_H - 1,
            ),
        },
        tokenizers=partial(_tokenizer, pad_token="!"),
        scheduler_class="DDIMScheduler",
        guess_prediction_type=_guess_from_weights,
        sample_size={"epsilon": 64, "v_prediction": 96},
        architecture={"epsilon": "stable-diffusion-v2-512", "v_prediction": "stable-diffusion-v2-768-v"},
        task_architecture={"inpaint": "stable-diffusion-v2-inpainting"},
    ),
)

UPSCALER_SCALING_FACTOR = 0.08333
UPSCALER_LABELS, UPSCALER_CHANNELS = 1000, 3
"""Noise levels as class labels, and the channels of the low-resolution image."""


def _is_upscaler(configs: Configs) -> bool:
    unet = configs.get("unet", {})
    added = (unet.get("in_channels") or 0) - (unet.get("out_channels") or 0)
    return unet.get("num_class_embeds") == UPSCALER_LABELS and added == UPSCALER_CHANNELS


UPSCALER = replace(
    SD2,
    name="sd-upscaler",
    title="the Stable Diffusion upscaler",
    pipeline_class="StableDiffusionUpscalePipeline",
    components={**SD2.components, "low_res_scheduler": Component("diffusers", ("DDPMScheduler",))},
    matches=_is_upscaler,
    optional=("safety_checker", "feature_extractor", "watermarker"),
    pipeline_settings={},
    task_pipelines={"upscale": "StableDiffusionUpscalePipeline"},
    scaling_factor=UPSCALER_SCALING_FACTOR,
    single_file=None,
)
"""With the text encoder of either version: it is recognised by its UNet."""

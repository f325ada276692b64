"""Stable Diffusion XL (Podell et al. 2023): two text encoders, and a UNet that is told sizes.

The first text encoder is OpenAI's CLIP ViT-L, the second open_clip's ViT-bigG with its projection. The UNet attends to
the outputs of their last layers but one, joined, and is told the projected output of the second, and the time ids.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from ldm.errors import UserError
from ldm.models.clip import ClipTextEncoder
from ldm.models.clip_pair import ClipTextEncoderPair
from ldm.models.families.family import (
    Component,
    Configs,
    Family,
    FileContent,
    LoraNames,
    OriginalNetwork,
    SingleFile,
    SizeConditions,
    Width,
)
from ldm.models.families.original_names import (
    FIRST_OF_TWO,
    SECOND_OF_TWO,
    UNET,
    VAE,
    XL_LEVELS,
    clip_from_original,
    clip_to_original,
    projected_from_original,
    projected_to_original,
    vae_from_original,
    vae_to_original,
    xl_unet_from_original,
    xl_unet_layer_in_file,
    xl_unet_to_original,
)
from ldm.models.families.original_shapes import (
    INPUT_CHANNELS,
    LATENT_CHANNELS,
    SIZE_CHANNELS,
    VOCABULARY,
    XL_SCALING_FACTOR,
    read_projected_text_settings,
    read_text_settings,
    read_vae_settings,
    read_xl_unet_settings,
    text_settings,
    vae_settings,
    xl_unet_settings,
)
from ldm.models.families.stable_diffusion import SD1, TOKENIZER_COMPONENT, latent_width, text_width
from ldm.models.generation_settings import AESTHETIC_SCORE, SECOND_PROMPT, SIZES

PROJECTED_CLIP_COMPONENT = Component(
    "transformers", ("CLIPTextModelWithProjection",), "transformers.models.clip.modeling_clip", stem="model"
)

_LAST_BUT_ONE = -2


def _pair(components: Mapping[str, Any], settings: Mapping[str, Any]) -> ClipTextEncoder:
    zeros = bool(settings["force_zeros_for_empty_prompt"])
    second = _second(components, settings)
    first, last = components["tokenizer"], components["tokenizer_2"]
    if first.model_max_length != last.model_max_length:
        raise UserError(
            f"the tokenizer reads {first.model_max_length} tokens, tokenizer_2 {last.model_max_length}",
            "both text encoders must have the same context: restore tokenizer_config.json",
        )
    return ClipTextEncoderPair(
        first, components["text_encoder"], second, hidden_layer=_LAST_BUT_ONE, zeros_for_empty=zeros
    )


def _second(components: Mapping[str, Any], settings: Mapping[str, Any]) -> ClipTextEncoder:
    return ClipTextEncoder(
        components["tokenizer_2"],
        components["text_encoder_2"],
        hidden_layer=_LAST_BUT_ONE,
        zeros_for_empty=bool(settings["force_zeros_for_empty_prompt"]),
        suffix="_2",
    )


def _widths(configs: Configs) -> Iterator[Width]:
    text, second = configs["text_encoder"], configs["text_encoder_2"]
    together = _sum(text.get("hidden_size"), second.get("hidden_size"))
    yield latent_width(configs)
    yield Width("text width", text_width(configs["unet"]), together, "text encoders together")
    yield _added_width(configs, numbers=6)
    first, last = (each.get("max_position_embeddings") for each in (text, second))
    yield Width("a first text encoder with context", first, last, "text_encoder_2")


def _refiner_widths(configs: Configs) -> Iterator[Width]:
    yield latent_width(configs)
    second = configs["text_encoder_2"].get("hidden_size")
    yield Width("text width", text_width(configs["unet"]), second, "text_encoder_2")
    yield _added_width(configs, numbers=5)


def _added_width(configs: Configs, *, numbers: int) -> Width:
    """The pooled text embedding, and a sinusoidal embedding of each of the time ids."""
    unet, pooled = configs["unet"], configs["text_encoder_2"].get("projection_dim")
    each = unet.get("addition_time_embed_dim")
    given = pooled + numbers * each if isinstance(pooled, int) and isinstance(each, int) else None
    wanted = unet.get("projection_class_embeddings_input_dim")
    return Width("a width of", wanted, given, f"pooled text and {numbers} time ids together")


def _sum(*widths: Any) -> Any:
    return sum(widths) if all(isinstance(width, int) for width in widths) else None


def _six_ids(sizes: SizeConditions) -> tuple[float, ...]:
    return (*sizes.original, *sizes.crop, *sizes.target)


def _five_ids(sizes: SizeConditions) -> tuple[float, ...]:
    return (*sizes.original, *sizes.crop, sizes.aesthetic_score)


def _assumed_unet(configs: Configs) -> dict[str, Any]:
    unet, second = configs["unet"], configs["text_encoder_2"]
    together = configs["text_encoder"]["hidden_size"] + second["hidden_size"]
    given, depths = unet.get("in_channels"), unet.get("transformer_layers_per_block")
    depths = depths if isinstance(depths, list | tuple) else (depths,) * XL_LEVELS
    return xl_unet_settings(
        unet["block_out_channels"],
        text_width=together,
        depths=(
            0,
            *depths[1:],
        ),  # the first level does not attend to the prompt; readers count the blocks of the rest
        added_width=second["projection_dim"] + 6 * SIZE_CHANNELS,
        in_channels=given if given in INPUT_CHANNELS else LATENT_CHANNELS,
    )


def _assumed_vae(configs: Configs) -> dict[str, Any]:
    return vae_settings(configs["vae"]["block_out_channels"], XL_SCALING_FACTOR)


def _assumed_first(configs: Configs) -> dict[str, Any]:
    return _assumed_text(configs["text_encoder"], hidden_act="quick_gelu", pad_token_id=VOCABULARY - 1)


def _assumed_second(configs: Configs) -> dict[str, Any]:
    return _assumed_text(configs["text_encoder_2"], hidden_act="gelu", pad_token_id=0)


def _assumed_text(text: Mapping[str, Any], *, hidden_act: str, pad_token_id: int) -> dict[str, Any]:
    return text_settings(
        text["hidden_size"],
        inner_width=text["intermediate_size"],
        num_layers=text["num_hidden_layers"],
        hidden_act=hidden_act,
        pad_token_id=pad_token_id,
    )


def _tokenizers() -> dict[str, Any]:
    from ldm.models.clip_tokenizer import clip_tokenizer  # imports transformers

    return {"tokenizer": clip_tokenizer(), "tokenizer_2": clip_tokenizer(pad_token="!")}


def _ask_for_prediction_type(content: FileContent) -> str:
    """Refuse a file that says nothing: its weights are alike whatever it predicts."""
    said = content.metadata.get("modelspec.prediction_type", "").strip()
    if said:
        what = f"{content.path.name} says that it predicts {said!r}, which is not supported"
        raise UserError(what, "epsilon and v_prediction are: choose with --prediction-type if it is wrong")
    raise UserError(
        f"{content.path.name} does not say what it predicts",
        "most models of Stable Diffusion XL predict epsilon: add --prediction-type epsilon, or v_prediction if the "
        "images are noise",
    )


_UNET_LORA = LoraNames(
    "lora_unet_",
    comfy_prefixes=("diffusion_model.",),
    original_name=xl_unet_layer_in_file,
    kohya_is_original=True,
)
_FIRST_LORA = LoraNames(
    "lora_te1_", is_text=True, comfy_prefixes=("text_encoders.clip_l.transformer.", "clip_l.transformer.")
)
_SECOND_LORA = LoraNames(
    "lora_te2_",
    is_text=True,
    inner="text_model.",
    comfy_prefixes=("text_encoders.clip_g.transformer.", "clip_g.transformer."),
)
_OWN_COMPONENTS = {name: SD1.components[name] for name in ("unet", "vae", "scheduler")}

SDXL = Family(
    name="sdxl",
    title="Stable Diffusion XL",
    pipeline_class="StableDiffusionXLPipeline",
    components={
        **SD1.components,
        "text_encoder_2": PROJECTED_CLIP_COMPONENT,
        "tokenizer_2": TOKENIZER_COMPONENT,
    },
    text_encoder=_pair,
    matches=lambda configs: {"text_encoder", "text_encoder_2"} <= configs.keys(),
    widths=_widths,
    lora={"unet": _UNET_LORA, "text_encoder": _FIRST_LORA, "text_encoder_2": _SECOND_LORA},
    optional=("feature_extractor", "image_encoder"),
    # without the second, the stock pipeline puts a watermark into images wherever a certain package is installed
    pipeline_settings={"force_zeros_for_empty_prompt": True, "add_watermarker": False},
    decisive_settings=("force_zeros_for_empty_prompt",),
    defaults={"guidance_scale": 5.0},
    task_pipelines={
        "inpaint": "StableDiffusionXLInpaintPipeline",
        "edit": "StableDiffusionXLInstructPix2PixPipeline",
    },
    time_ids=_six_ids,
    told=frozenset({SIZES, SECOND_PROMPT}),
    refiners=("sdxl-refiner", "sdxl"),
    single_file=SingleFile(
        matches=lambda names: any(name.startswith(SECOND_OF_TWO) for name in names),
        networks={
            "unet": OriginalNetwork(
                UNET,
                xl_unet_to_original,
                xl_unet_from_original,
                read_xl_unet_settings,
                _assumed_unet,
                num_levels=XL_LEVELS,
            ),
            "vae": OriginalNetwork(VAE, vae_to_original, vae_from_original, read_vae_settings, _assumed_vae),
            "text_encoder": OriginalNetwork(
                FIRST_OF_TWO,
                clip_to_original,
                clip_from_original,
                partial(read_text_settings, hidden_act="quick_gelu", pad_token_id=VOCABULARY - 1),
                _assumed_first,
            ),
            "text_encoder_2": OriginalNetwork(
                SECOND_OF_TWO,
                projected_to_original,
                projected_from_original,
                read_projected_text_settings,
                _assumed_second,
            ),
        },
        tokenizers=_tokenizers,
        scaling_factor=XL_SCALING_FACTOR,
        scheduler_class="EulerDiscreteScheduler",
        guess_prediction_type=_ask_for_prediction_type,
        sample_size={"epsilon": 128, "v_prediction": 128},
        architecture=dict.fromkeys(("epsilon", "v_prediction"), "stable-diffusion-xl-v1-base"),
    ),
)

SDXL_REFINER = replace(
    SDXL,
    name="sdxl-refiner",
    title="the refiner of Stable Diffusion XL",
    pipeline_class="StableDiffusionXLImg2ImgPipeline",
    components={
        **_OWN_COMPONENTS,
        "text_encoder_2": PROJECTED_CLIP_COMPONENT,
        "tokenizer_2": TOKENIZER_COMPONENT,
    },
    text_encoder=_second,
    matches=lambda configs: "text_encoder_2" in configs and "text_encoder" not in configs,
    widths=_refiner_widths,
    lora={"unet": replace(_UNET_LORA, original_name=None), "text_encoder_2": _SECOND_LORA},
    optional=("text_encoder", "tokenizer"),
    pipeline_settings={**SDXL.pipeline_settings, "requires_aesthetics_score": True},
    task_pipelines={},
    time_ids=_five_ids,
    told=frozenset({SIZES, AESTHETIC_SCORE}),
    refiners=(),
    single_file=None,
)
"""It has the second text encoder alone, and is told an aesthetic score in place of the target size."""

"""A model of Stable Diffusion 1 or 2 in one safetensors file, in the layout of the original programs.

The networks follow from names and shapes, the tokenizer is CLIP's own. What a model predicts is in no weight: the file
says it by a key `v_pred` (and `ztsnr`) or in its ModelSpec header; where it does not, it is guessed as others do.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm.errors import UserError, unknown_name, warn
from ldm.io.files import open_tensors
from ldm.io.safetensors_header import read_header
from ldm.models.clip import ClipTextEncoder
from ldm.models.clip_tokenizer import clip_tokenizer
from ldm.models.generation_settings import MAX_PROMPT_CHUNKS, GenerationSettings
from ldm.models.loading.original_names import OPEN_CLIP, UNET, from_original, is_passed_over, left_over
from ldm.models.loading.original_shapes import (
    LATENT_CHANNELS,
    SCALING_FACTOR,
    build_network,
    read_text_settings,
    read_unet_settings,
    read_vae_settings,
)
from ldm.models.parts import ModelParts, default_size
from ldm.models.unet import UNetDenoiser
from ldm.models.vae import KLAutoencoder

PREDICTION_TYPES = {"epsilon": "epsilon", "v_prediction": "v_prediction", "v": "v_prediction"}
"""What ModelSpec and others call what a model predicts, and what diffusers does."""

LAYERS_OF_VIT_H = 24
"""Of the text encoder that Stable Diffusion 2 comes with; it is read after the last but one."""

LATENTS_512, LATENTS_768 = 64, 96
_TELLING = f"{UNET}output_blocks.11.1.transformer_blocks.0.norm1.bias"
_DEVIATION_OF_V = 0.09  # ComfyUI's bound: above it, the norm is that of Stable Diffusion 2's v-prediction


@dataclass(frozen=True)
class _Content:
    """What is read of a file: weights by original names, every name, text of the header, `scale_factor`."""

    weights: dict[str, Tensor]
    names: frozenset[str]
    metadata: Mapping[str, str]
    scaling_factor: float

    @property
    def open_clip(self) -> bool:
        """Whether the text encoder has the layout of Stable Diffusion 2."""
        return any(name.startswith(OPEN_CLIP) for name in self.names)


def load_single_file(
    path: Path, dtype: torch.dtype = torch.float32, *, prediction_type: str | None = None
) -> ModelParts:
    """Load a model from one file, on the CPU, in evaluation mode, without gradients.

    Args:
        dtype: of the denoiser and the text encoder; the autoencoder stays in float32, as it may overflow.
        prediction_type: "epsilon" or "v_prediction", in place of what the file says.

    Raises:
        UserError: the file is damaged, is no such model, or has a weight too few or too many.

    Warns:
        LdmWarning: what a Stable Diffusion 2 predicts had to be guessed.
    """
    if prediction_type is not None and prediction_type not in PREDICTION_TYPES:
        raise unknown_name("prediction type", prediction_type, PREDICTION_TYPES)
    content = _read(path)
    scheduler_config = _scheduler_config(path, content, prediction_type)
    with _naming(path):
        unet, vae, text = from_original(content.weights)
        if content.open_clip:
            text = _without_last_layer(text)
        sample_size = _sample_size(content, scheduler_config["prediction_type"])
        unet_settings = read_unet_settings(unet) | {"sample_size": sample_size}
        vae_settings = read_vae_settings(vae) | {"scaling_factor": content.scaling_factor}
        text_settings = read_text_settings(text, open_clip=content.open_clip)
        denoiser = UNetDenoiser(build_network("unet", unet_settings, unet, dtype))
        autoencoder = KLAutoencoder(build_network("vae", vae_settings, vae, torch.float32))
        text_model = build_network("text_encoder", text_settings, text, dtype)
    tokenizer = clip_tokenizer("!") if content.open_clip else clip_tokenizer()
    text_encoder = ClipTextEncoder(tokenizer, text_model)
    if denoiser.text_width != text_encoder.text_width:
        raise UserError(
            f"{path}: the unet has text width {denoiser.text_width}, the text encoder {text_encoder.text_width}",
            "these parts are not of one text-to-image model",
        )
    height, width = default_size(denoiser, autoencoder)
    defaults = GenerationSettings(height=height, width=width, max_prompt_chunks=MAX_PROMPT_CHUNKS)
    return ModelParts(denoiser, autoencoder, text_encoder, scheduler_config, defaults)


def _read(path: Path) -> _Content:
    """The weights that count, without those passed over, which may be as large again."""
    header = read_header(path)
    names = frozenset(header.tensors)
    _check_kind(path, header.tensors)
    with open_tensors(path) as file:
        weights = {name: file.get_tensor(name) for name in names if not is_passed_over(name)}
        factor = file.get_tensor("scale_factor") if "scale_factor" in names else torch.tensor(SCALING_FACTOR)
    if factor.numel() != 1 or not (torch.isfinite(factor) & (factor > 0)).all():
        raise UserError(f"{path}: scale_factor is no positive number", "restore the file")
    scaling_factor = SCALING_FACTOR if abs(factor.item() - SCALING_FACTOR) < 1e-6 else factor.item()
    return _Content(weights, names, header.metadata, scaling_factor)


def _check_kind(path: Path, tensors: Mapping[str, Any]) -> None:
    """Refuse by its name what is no model of Stable Diffusion 1 or 2."""
    if any(name.startswith("conditioner.embedders.") for name in tensors):
        raise UserError(f"{path} is a model of Stable Diffusion XL", "models of 1 and 2 are read")
    if not any(name.startswith(UNET) for name in tensors):
        raise UserError(
            f"{path} is no single-file model of Stable Diffusion 1 or 2", f"it has no weight {UNET}..."
        )
    first = tensors.get(f"{UNET}input_blocks.0.0.weight")
    if first is not None and len(first.shape) == 4 and first.shape[1] != LATENT_CHANNELS:
        raise UserError(
            f"{path}: its first layer takes {first.shape[1]} channels, where latents have {LATENT_CHANNELS}",
            "models for inpainting, depth or upscaling are not read",
        )
    for name in left_over(tensors):
        raise UserError(f"{path}: the weight {name} belongs to no part of the model", "it is not read")


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """What is wrong with the file's weights, as one line that names it."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{path}: {error.what}", error.hint) from error
    except KeyError as error:
        raise UserError(
            f"{path}: the weight {error.args[0]} is missing, or not of this structure",
            "four levels of two resnets are read, as Stable Diffusion 1 and 2 have them",
        ) from None
    except (ValueError, IndexError, TypeError) as error:
        raise UserError(f"{path}: its weights have impossible shapes ({error})", "restore the file") from None


def _without_last_layer(text: dict[str, Tensor]) -> dict[str, Tensor]:
    """The layer that Stable Diffusion 2 does not use, where the file has the whole of its text encoder."""
    last = f"encoder.layers.{LAYERS_OF_VIT_H - 1}."
    return {name: tensor for name, tensor in text.items() if not name.startswith(last)}


def _scheduler_config(path: Path, content: _Content, given: str | None) -> dict[str, Any]:
    """The noise schedule that every such file means, and what this one predicts."""
    prediction_type = PREDICTION_TYPES[given] if given else _prediction_type(path, content)
    zero_snr = "ztsnr" in content.names and prediction_type == "v_prediction"
    config: dict[str, Any] = {
        "_class_name": "DDIMScheduler" if content.open_clip or zero_snr else "PNDMScheduler",
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "clip_sample": False,
        "num_train_timesteps": 1000,
        "prediction_type": prediction_type,
        "set_alpha_to_one": False,
        "skip_prk_steps": True,
        "steps_offset": 1,
        "trained_betas": None,
    }
    return config | ({"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"} if zero_snr else {})


def _prediction_type(path: Path, content: _Content) -> str:
    if "v_pred" in content.names:
        return "v_prediction"
    said = PREDICTION_TYPES.get(content.metadata.get("modelspec.prediction_type", "").strip().lower())
    if said or not content.open_clip:
        return said or "epsilon"
    telling = content.weights.get(_TELLING, torch.zeros(2)).float()
    guess = "v_prediction" if telling.numel() > 1 and telling.std() > _DEVIATION_OF_V else "epsilon"
    message = f"{path.name} does not say what it predicts; by its weights it is taken for {guess}"
    warn(message)
    return guess


def _sample_size(content: _Content, prediction_type: str) -> int:
    """The side of the latents that the model was made for: by its header, else as Stable Diffusion has it."""
    said = re.fullmatch(r"(\d{2,4})x\1", content.metadata.get("modelspec.resolution", ""))
    if said and int(said[1]) >= 8:
        return int(said[1]) // 8
    return LATENTS_768 if content.open_clip and prediction_type == "v_prediction" else LATENTS_512

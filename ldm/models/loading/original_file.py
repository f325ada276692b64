"""A model in one safetensors file, in the layout of the original programs.

The networks follow from names and shapes; the tokenizers are those of the family. No weight says what the model
predicts: the file says so by a key `v_pred` (and `ztsnr`) or in its ModelSpec header; if it does not, it is guessed as
other programs do.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ldm.errors import UserError, unknown_name
from ldm.io.files import open_tensors
from ldm.io.safetensors_header import TensorEntry, read_header
from ldm.models.families.family import Family, FileContent, SingleFile
from ldm.models.families.original_names import UNET, from_original, is_passed_over, left_over
from ldm.models.families.original_shapes import LATENT_CHANNELS
from ldm.models.families.registry import family_of_file
from ldm.models.generation_settings import MAX_PROMPT_CHUNKS, GenerationSettings
from ldm.models.loading.components import build_network
from ldm.models.parts import ModelParts, assemble

PREDICTION_TYPES = {"epsilon": "epsilon", "v_prediction": "v_prediction", "v": "v_prediction"}
"""The names of prediction types in ModelSpec and elsewhere, and in diffusers."""

SDXL_TEXT = "conditioner.embedders."
"""The beginning of the text encoders' weights in a file of Stable Diffusion XL."""


def load_single_file(
    path: Path, dtype: torch.dtype = torch.float32, *, prediction_type: str | None = None
) -> ModelParts:
    """Load a model from one file, on the CPU, in evaluation mode, without gradients.

    Args:
        dtype: of the networks; those that need float32 keep it, see `Component`.
        prediction_type: "epsilon" or "v_prediction", overriding the file.

    Raises:
        UserError: the file is damaged, is not such a model, or has a weight too few or too many.

    Warns:
        LdmWarning: what a Stable Diffusion 2 predicts had to be guessed.
    """
    if prediction_type is not None and prediction_type not in PREDICTION_TYPES:
        raise unknown_name("prediction type", prediction_type, PREDICTION_TYPES)
    family, layout = find_layout(path, read_header(path).tensors)
    content = _read(path, layout.scaling_factor)
    scheduler_config = _scheduler_config(layout, content, prediction_type)
    components: dict[str, Any] = {}
    with _naming(path):
        weights = from_original(content.weights, layout.networks)
        for name, network in layout.networks.items():
            settings = network.read_settings(weights[name]) | _beside_weights(
                name, layout, content, scheduler_config
            )
            component = family.components[name]
            own_dtype = torch.float32 if component.keep_float32 else dtype
            components[name] = build_network(name, component, settings, weights[name], own_dtype)
    components |= layout.tokenizers()
    parts = assemble(path, family, components, scheduler_config)
    parts.defaults = GenerationSettings(max_prompt_chunks=MAX_PROMPT_CHUNKS).over(parts.defaults)
    return parts


def find_layout(path: Path, tensors: Mapping[str, TensorEntry]) -> tuple[Family, SingleFile]:
    """The family of a file and its layout; what is not such a model is refused by its name.

    Raises:
        UserError: the file is of an unknown family, of another task, or has a weight of no component.
    """
    family = family_of_file(tensors.keys())
    if family is None or family.single_file is None:
        raise UserError(
            f"{path} is not a single-file model of Stable Diffusion 1 or 2", f"it has no weight {UNET}..."
        )
    unknown = left_over(tensors, family.single_file.networks)
    if any(name.startswith(SDXL_TEXT) for name in unknown):
        raise UserError(f"{path} is a model of Stable Diffusion XL", "models of 1 and 2 are read")
    first = tensors.get(f"{UNET}input_blocks.0.0.weight")
    if first is not None and len(first.shape) == 4 and first.shape[1] != LATENT_CHANNELS:
        raise UserError(
            f"{path}: its first layer takes {first.shape[1]} channels, where latents have {LATENT_CHANNELS}",
            "models for inpainting, depth or upscaling are not read",
        )
    for name in unknown:
        raise UserError(f"{path}: the weight {name} belongs to no part of the model", "it is not read")
    return family, family.single_file


def _read(path: Path, usual_factor: float) -> FileContent:
    """The weights that count; those that are skipped may be as large again and are not read."""
    header = read_header(path)
    names = frozenset(header.tensors)
    with open_tensors(path) as file:
        weights = {name: file.get_tensor(name) for name in names if not is_passed_over(name)}
        factor = file.get_tensor("scale_factor") if "scale_factor" in names else torch.tensor(usual_factor)
    if factor.numel() != 1 or not (torch.isfinite(factor) & (factor > 0)).all():
        raise UserError(f"{path}: scale_factor is not a positive number", "restore the file")
    scaling_factor = usual_factor if abs(factor.item() - usual_factor) < 1e-6 else factor.item()
    return FileContent(path, weights, names, header.metadata, scaling_factor)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Turn what is wrong with the file's weights into one line that names the file."""
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


def _scheduler_config(layout: SingleFile, content: FileContent, given: str | None) -> dict[str, Any]:
    """The noise schedule that every such file assumes, and what this one predicts."""
    prediction_type = PREDICTION_TYPES[given] if given else _prediction_type(layout, content)
    zero_snr = "ztsnr" in content.names and prediction_type == "v_prediction"
    config: dict[str, Any] = {
        "_class_name": "DDIMScheduler" if zero_snr else layout.scheduler_class,
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


def _prediction_type(layout: SingleFile, content: FileContent) -> str:
    if "v_pred" in content.names:
        return "v_prediction"
    said = content.metadata.get("modelspec.prediction_type", "").strip().lower()
    return PREDICTION_TYPES.get(said) or layout.guess_prediction_type(content)


def _beside_weights(
    name: str, layout: SingleFile, content: FileContent, scheduler_config: Mapping[str, Any]
) -> dict[str, Any]:
    """The settings of a network that its weights do not tell."""
    if name == "unet":
        return {"sample_size": _sample_size(layout, content, scheduler_config["prediction_type"])}
    return {"scaling_factor": content.scaling_factor} if name == "vae" else {}


def _sample_size(layout: SingleFile, content: FileContent, prediction_type: str) -> int:
    """The side of the latents that the model was made for: from its header, else the family's."""
    said = re.fullmatch(r"(\d{2,4})x\1", content.metadata.get("modelspec.resolution", ""))
    if said and int(said[1]) >= 8:
        return int(said[1]) // 8
    return layout.sample_size[prediction_type]

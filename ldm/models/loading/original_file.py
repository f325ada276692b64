"""A model in one safetensors file, in the layout of the original programs.

The networks follow from names and shapes; the tokenizers are those of the family. No weight says what the model
predicts: the file says so by a key `v_pred` (and `ztsnr`) or in its ModelSpec header, or a configuration beside it
does; otherwise it is guessed as other programs do, with a warning.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm.errors import UserError, unknown_name, warn
from ldm.io.files import open_tensors
from ldm.io.safetensors_header import TensorEntry, read_header
from ldm.models.families.family import Family, FileContent, OriginalNetwork, SingleFile
from ldm.models.families.original_names import UNET, VAE, from_original, is_passed_over, left_over
from ldm.models.families.original_shapes import INPUT_CHANNELS, LATENT_CHANNELS
from ldm.models.families.registry import family_of_file
from ldm.models.generation_settings import GenerationSettings
from ldm.models.loading.components import build_network
from ldm.models.loading.sidecar import Sidecar, read_sidecar
from ldm.models.parts import ModelParts, assemble
from ldm.models.setting_limits import MAX_PROMPT_CHUNKS

PREDICTION_TYPES = {"epsilon": "epsilon", "v_prediction": "v_prediction", "v": "v_prediction"}
"""The names of prediction types in ModelSpec and elsewhere, and in diffusers."""

STRUCTURE = (
    "four levels of two resnets are read, as Stable Diffusion 1 and 2 have them, and three, as XL has them"
)

REFINERS_TEXT = "conditioner.embedders.0.model."
"""The beginning of the text encoder's weights in a file of Stable Diffusion XL's refiner."""


NOUNS = {
    "unet": "UNet",
    "vae": "autoencoder",
    "text_encoder": "text encoder",
    "text_encoder_2": "second text encoder",
}
"""What the components are called in messages."""


def load_single_file(
    path: Path,
    dtype: torch.dtype = torch.float32,
    *,
    prediction_type: str | None = None,
    vae: Any = None,
    base: ModelParts | None = None,
    beside: Path | None = None,
) -> ModelParts:
    """Load a model from one file, on the CPU, in evaluation mode, without gradients.

    Args:
        dtype: of the networks; those that need float32 keep it, see `Component`.
        prediction_type: "epsilon" or "v_prediction", overriding the file.
        vae: an `AutoencoderKL` in place of the file's.
        base: a model whose networks and tokenizers are used where the file has none.
        beside: the file whose sidecar counts, if not that of `path`.

    Raises:
        UserError: the file is damaged, is not such a model, lacks a network, or has a weight too few or too many.

    Warns:
        LdmWarning: nothing says what the model predicts, or the file and its sidecar disagree.
    """
    if prediction_type is not None and prediction_type not in PREDICTION_TYPES:
        raise unknown_name("prediction type", prediction_type, PREDICTION_TYPES)
    tensors = read_header(path).tensors
    family, layout = find_layout(path, tensors, base)
    held = _held_networks(path, layout, tensors, has_vae=vae is not None, has_base=base is not None)
    sidecar = read_sidecar(beside or path)
    content = replace(_read(path, _usual_factor(layout, sidecar)), path=beside or path)
    scheduler_config = _scheduler_config(layout, content, prediction_type, sidecar)
    components: dict[str, Any] = dict(base.components()) if base else {}
    components |= _networks(path, family, held, content, scheduler_config, dtype)
    if vae is not None:
        components["vae"] = vae
    if "text_encoder" in held or base is None:
        components |= layout.tokenizers()
    parts = assemble(path, family, components, scheduler_config)
    parts.defaults = GenerationSettings(max_prompt_chunks=MAX_PROMPT_CHUNKS).over(parts.defaults)
    return parts


def _networks(
    path: Path,
    family: Family,
    held: Mapping[str, OriginalNetwork],
    content: FileContent,
    scheduler_config: Mapping[str, Any],
    dtype: torch.dtype,
) -> dict[str, Any]:
    """The networks that the file holds."""
    found: dict[str, Any] = {}
    with _naming(path):
        weights = _by_network(path, content, held)
        for name, network in held.items():
            settings = network.read_settings(weights[name]) | _beside_weights(
                name, family, content, scheduler_config
            )
            component = family.components[name]
            own_dtype = torch.float32 if component.keep_float32 else dtype
            found[name] = build_network(name, component, settings, weights[name], own_dtype)
    return found


def _by_network(
    path: Path, content: FileContent, held: Mapping[str, OriginalNetwork]
) -> dict[str, dict[str, Tensor]]:
    try:
        return from_original(content.weights, held)
    except KeyError as error:
        raise UserError(
            f"{path}: the weight {error.args[0]} is not one of this structure", STRUCTURE
        ) from None


def _held_networks(
    path: Path, layout: SingleFile, names: Collection[str], *, has_vae: bool, has_base: bool
) -> dict[str, OriginalNetwork]:
    """The networks of the layout that the file has weights of; those that come from elsewhere may be missing.

    Raises:
        UserError: one is missing and comes from nowhere else.
    """
    held = {
        name: one
        for name, one in layout.networks.items()
        if any(each.startswith(one.prefix) and not is_passed_over(each) for each in names)
    }
    given = {"vae"} if has_vae else set()
    for name in layout.networks:
        if name not in held and name not in given and not has_base:
            noun = NOUNS.get(name, name)
            vae = "--vae FOLDER|FILE, or " if name == "vae" else ""
            raise UserError(
                f"{path} holds no {noun}",
                f"add {vae}--base MODEL to take it from another model (in `ldm generate` and `ldm import`)",
            )
    return {name: one for name, one in held.items() if name not in given}


def _usual_factor(layout: SingleFile, sidecar: Sidecar | None) -> float:
    """The factor of the latents for a file that has no `scale_factor`."""
    return sidecar.scaling_factor if sidecar and sidecar.scaling_factor else layout.scaling_factor


def find_layout(
    path: Path, tensors: Mapping[str, TensorEntry], base: ModelParts | None = None
) -> tuple[Family, SingleFile]:
    """The family of a file and its layout; what is not such a model is refused by its name.

    Args:
        base: decides of the family of a file without a text encoder.

    Raises:
        UserError: the file is of an unknown family, of another task, or has a weight of no component.
    """
    family = family_of_file(tensors.keys())
    if family is None or family.single_file is None:
        what = "holds an autoencoder alone" if any(name.startswith(VAE) for name in tensors) else ""
        raise UserError(
            f"{path} {what or 'is not a single-file model of Stable Diffusion 1, 2 or XL'}",
            "give it with --vae, beside a model" if what else f"it has no weight {UNET}...",
        )
    has_text = any(name.startswith(family.single_file.networks["text_encoder"].prefix) for name in tensors)
    if base is not None and base.family.single_file is not None and not has_text:
        family = base.family
    layout = family.single_file
    assert layout is not None
    unknown = left_over(tensors, layout.networks)
    if any(name.startswith(REFINERS_TEXT) for name in unknown):
        what = f"{path} is the refiner of Stable Diffusion XL"
        raise UserError(what, "as a single file only the base model is read; use the folder of the refiner")
    first = tensors.get(f"{UNET}input_blocks.0.0.weight")
    if first is not None and len(first.shape) == 4 and first.shape[1] not in INPUT_CHANNELS:
        raise UserError(
            f"{path}: its first layer takes {first.shape[1]} channels, where latents have {LATENT_CHANNELS}",
            "models from text, for editing (8) and for inpainting (9) are read, not those for depth or upscaling",
        )
    for name in unknown:
        raise UserError(f"{path}: the weight {name} belongs to no part of the model", "it is not read")
    return family, layout


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
        raise UserError(f"{path}: the weight {error.args[0]} is missing", STRUCTURE) from None
    except (ValueError, IndexError, TypeError) as error:
        raise UserError(f"{path}: its weights have impossible shapes ({error})", "restore the file") from None


def _scheduler_config(
    layout: SingleFile, content: FileContent, given: str | None, sidecar: Sidecar | None
) -> dict[str, Any]:
    """The noise schedule that every such file assumes, and what this one predicts."""
    prediction_type = PREDICTION_TYPES[given] if given else _prediction_type(layout, content, sidecar)
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
        **(sidecar.schedule if sidecar else {}),
    }
    return config | ({"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"} if zero_snr else {})


def _prediction_type(layout: SingleFile, content: FileContent, sidecar: Sidecar | None) -> str:
    """What the file says, else what its sidecar says, else what other programs guess."""
    said = content.metadata.get("modelspec.prediction_type", "").strip().lower()
    own = "v_prediction" if "v_pred" in content.names else PREDICTION_TYPES.get(said)
    beside = sidecar.prediction_type if sidecar else None
    if own and beside and sidecar and own != beside:
        warn(
            f"{content.path.name} says that it predicts {own}, and {sidecar.path.name} {beside}: {own} is used"
        )
    return own or beside or layout.guess_prediction_type(content)


def _beside_weights(
    name: str, family: Family, content: FileContent, scheduler_config: Mapping[str, Any]
) -> dict[str, Any]:
    """The settings of a network that its weights do not tell."""
    layout = family.single_file
    assert layout is not None
    if name == "unet":
        return {"sample_size": _sample_size(layout, content, scheduler_config["prediction_type"])}
    return {"scaling_factor": content.scaling_factor} if name == "vae" else {}


def _sample_size(layout: SingleFile, content: FileContent, prediction_type: str) -> int:
    """The side of the latents that the model was made for: from its header, else the family's."""
    said = re.fullmatch(r"(\d{2,4})x\1", content.metadata.get("modelspec.resolution", ""))
    if said and int(said[1]) >= 8:
        return int(said[1]) // 8
    return layout.sample_size.get(prediction_type, layout.sample_size["epsilon"])

"""The format "single-file": one safetensors file in the original layout, which most image programs read.

Such a file has no configuration: readers assume the structure of Stable Diffusion 1 or 2, at any width. A model with
another structure is refused, because readers would misinterpret it; the error names the first difference.
"""

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm.diffusion.paths import path_of_config, prediction_type_of
from ldm.errors import UserError
from ldm.export.export_options import ExportOptions
from ldm.export.export_source import ExportSource
from ldm.export.formats.diffusers_folder import expect_rounded, write_configs
from ldm.export.formats.exporter import ExportedModel, ReadBack, Usage, literal
from ldm.export.formats.modelspec import ORIGINAL_LAYOUT, modelspec_fields
from ldm.export.verify.compare import Verdict, verify
from ldm.io.files import write_tensors
from ldm.io.safetensors_writer import TENSORS_SHA256
from ldm.io.temporary import working_folder
from ldm.models.devices import DTYPES
from ldm.models.families.family import Component, SingleFile
from ldm.models.families.original_names import to_original
from ldm.models.parts import ModelParts, default_size

NO_PART_OF_THE_STRUCTURE = {
    "sample_size", "upcast_attention", "force_upcast", "dropout", "projection_dim",
    "bos_token_id", "eos_token_id", "pad_token_id",
}  # fmt: skip
"""Network settings that do not change the image; readers do not need them."""

SCHEDULE = {
    "beta_schedule": ("linear", "scaled_linear"),
    "beta_start": (0.0001, 0.00085),
    "beta_end": (0.02, 0.012),
    "num_train_timesteps": (1000, 1000),
    "trained_betas": (None, None),
}
"""The noise schedule: diffusers' default for each setting, and the value that readers of a single file assume."""

HASH = "modelspec.hash_sha256"
HINT = "export it in the diffusers layout instead"


SD1_WIDTHS = [320, 640, 1280, 1280]
"""Stable Diffusion's UNet. Readers of a single file know these widths; for others they need the configurations."""

PROGRAMS = {"models/Stable-diffusion": "AUTOMATIC1111's web UI", "models/checkpoints": "ComfyUI"}
"""Folders in which other programs look for a model."""


def export_single_file(source: ExportSource, folder: Path, options: ExportOptions, name: str) -> ReadBack:
    """An `Exporter`."""
    dtype, file = DTYPES[options.dtype], folder / f"{name}.safetensors"
    metadata = modelspec_metadata(
        source.parts, title=options.title or source.model_id, licence=options.licence
    )
    write_single_file(source.weights(), file, dtype=dtype, metadata=metadata)

    def read_back() -> tuple[Verdict, ...]:
        with working_folder("configs") as configs:
            write_configs(source.parts, configs)
            return (verify(expect_rounded(source, dtype), "single-file", folder=configs, file=file),)

    return read_back


def single_file_usage(exported: ExportedModel) -> Usage:
    """A `UsageOf`; other programs are named only if they know the UNet."""
    parts, file = exported.source.parts, f"{exported.name}.safetensors"
    local = f"{exported.name}/{file}"
    known = list(parts.denoiser.unet.config.block_out_channels) == SD1_WIDTHS
    config = "" if known else ', config="FOLDER"'
    note = "" if known else "  # FOLDER: this model in the diffusers layout, for its sizes and vocabulary"
    place = "file" if exported.repo_id else literal(local)
    stock = exported.pipeline_class
    load = f"pipe = {stock}.from_single_file({place}{config}){note}"
    programs = PROGRAMS if has_known_unet(parts) else {}
    if exported.repo_id is None:
        return Usage((load,), pipeline_class=stock, model=local, programs=programs)
    download = f"file = hf_hub_download({literal(exported.repo_id)}, {literal(file)})"
    imports = ("from huggingface_hub import hf_hub_download",)
    return Usage(
        (download, load), imports, pipeline_class=stock, model=local, programs=programs, needs_download=True
    )


def write_single_file(
    parts: ModelParts, path: Path, *, dtype: torch.dtype, metadata: Mapping[str, str]
) -> None:
    """Write a model as one file, whole or not at all.

    Args:
        dtype: the number format of the stored weights.
        metadata: for the header, such as `modelspec_metadata` gives; the hash of the weights is added.

    Raises:
        UserError: the model does not have the structure that readers of such files assume, or the disk is full.
    """
    check_structure(parts)
    hashed = {HASH: f"0x{TENSORS_SHA256}"}
    write_tensors(path, _tensors(parts, dtype), {"format": "pt", **metadata, **hashed}, dtype=dtype)


def modelspec_metadata(
    parts: ModelParts, *, title: str, licence: str | None = None, **fields: Any
) -> dict[str, str]:
    """The metadata of a single file's header, as ModelSpec defines it.

    Args:
        title: the model's name.
        licence: the licence of the weights, an SPDX name such as "mit".
        fields: further arguments of `modelspec_fields`.
    """
    height, width = default_size(parts.denoiser, parts.autoencoder)
    predicts = prediction_type_of(parts.scheduler_config)
    return modelspec_fields(
        architecture=_architecture(parts, predicts),
        implementation=ORIGINAL_LAYOUT,
        title=title,
        resolution=(width, height),
        prediction_type=predicts,
        licence=licence,
        **fields,
    )


def _architecture(parts: ModelParts, prediction_type: str) -> str:
    """ModelSpec's name of the model's architecture."""
    layout = parts.family.single_file
    if layout is None:
        return parts.family.name
    named = layout.architecture.get(prediction_type, layout.architecture["epsilon"])
    return layout.task_architecture.get(parts.task, named)


def _layout(parts: ModelParts) -> SingleFile:
    family = parts.family
    if family.single_file is None:
        raise UserError(f"models of {family.title} are not stored in a single file", HINT)
    return family.single_file


def has_known_unet(parts: ModelParts) -> bool:
    """Whether the denoiser is built as other programs assume of the family that a LoRA's model is of."""
    try:
        _check_network("unet", parts, _layout(parts))
    except UserError:
        return False
    return True


def check_structure(parts: ModelParts) -> None:
    """Refuse a model that readers of a single file would misinterpret.

    Raises:
        UserError: names the first setting that differs, and the value that readers assume.
    """
    layout = _layout(parts)
    for name in layout.networks:
        _check_network(name, parts, layout)
    _check_tokenizers(parts, layout)
    _check_schedule(parts.scheduler_config)


def _check_network(name: str, parts: ModelParts, layout: SingleFile) -> None:
    configs, original = parts.configs(), layout.networks[name]
    given = configs[name]
    levels, layers = given.get("block_out_channels"), given.get("num_hidden_layers")
    if levels is not None and len(levels) != original.num_levels:
        called = "autoencoder" if name == "vae" else name
        raise UserError(
            f"the {called} has {len(levels)} levels, but a single file must have {original.num_levels}", HINT
        )
    if original.max_layers is not None and layers is not None and layers > original.max_layers:
        raise UserError(f"the text encoder has {layers} layers, but readers ignore the last one", HINT)
    _check_settings(name, parts.family.components[name], given, original.assumed_settings(configs))


def _check_settings(
    name: str, component: Component, given: Mapping[str, Any], assumed: Mapping[str, Any]
) -> None:
    """Hold a network's settings against those of a reader: the assumed ones, and the class's own for the rest."""
    parameters = inspect.signature(component.load_class().__init__).parameters.values()
    silent = {p.name: p.default for p in parameters if p.default is not p.empty}
    for key, value in {**silent, **assumed}.items():
        if key not in NO_PART_OF_THE_STRUCTURE and _plain(given.get(key, value)) != _plain(value):
            raise UserError(
                f"the {name}'s {key} is {_plain(given[key])!r}, but readers of a single file assume {_plain(value)!r}",
                HINT,
            )


def _plain(value: Any) -> Any:
    """A setting in one notation, whether it was given for each level or once for all."""
    if isinstance(value, list | tuple):
        return value[0] if len(set(value)) == 1 else tuple(value)
    return value


def _check_tokenizers(parts: ModelParts, layout: SingleFile) -> None:
    """Hold the tokenizers against those that readers take."""
    components = parts.components()
    for name, assumed in layout.tokenizers().items():
        tokenizer = components[name]
        if tokenizer.get_vocab() != assumed.get_vocab():
            raise UserError(
                f"the tokenizer has its own {len(tokenizer)} tokens, but readers of a single file use CLIP's",
                HINT,
            )
        if (length := parts.text_encoder.context_length) != assumed.model_max_length:
            raise UserError(
                f"a prompt has {length} tokens, but readers assume {assumed.model_max_length}", HINT
            )
        if (padding := tokenizer.pad_token_id) != assumed.pad_token_id:
            raise UserError(
                f"prompts are padded with token {padding}, but readers assume {assumed.pad_token_id}", HINT
            )


def _check_schedule(config: Mapping[str, Any]) -> None:
    if path := path_of_config(config):
        raise UserError(
            f"the model's path is {path.name!r}, but readers of a single file assume DDPM's", HINT
        )
    for key, (default, assumed) in SCHEDULE.items():
        if config.get(key, default) != assumed:
            raise UserError(
                f"the noise schedule's {key} is {config.get(key, default)!r}, but readers assume {assumed!r}",
                HINT,
            )
    if config.get("prediction_type", "epsilon") not in ("epsilon", "v_prediction"):
        raise UserError(f"the model predicts {config['prediction_type']!r}, which no reader supports", HINT)


def _tensors(parts: ModelParts, dtype: torch.dtype) -> dict[str, Tensor]:
    """Everything by its original name; empty tensors mark what the model predicts, and on which schedule."""
    weights = {name: network.state_dict() for name, network in parts.networks().items()}
    try:
        named = to_original(weights, _layout(parts).networks)
    except KeyError as error:
        raise UserError(f"the weight {error.args[0]} has no place in a single file", HINT) from None
    tensors = dict(named)
    if parts.scheduler_config.get("prediction_type") == "v_prediction":
        tensors["v_pred"] = torch.empty(0, dtype=dtype)
    if parts.scheduler_config.get("rescale_betas_zero_snr"):
        tensors["ztsnr"] = torch.empty(0, dtype=dtype)
    return tensors

"""Load a model from a folder, a file or the Hub, and save it as a folder."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ldm.errors import UserError
from ldm.io.collector import collector_paused
from ldm.io.files import write_bytes, write_json
from ldm.io.folders import new_folder
from ldm.models.adapters.embedding import TokenEmbedding, expanded_tokens
from ldm.models.adapters.folder import adapter_chain, apply_adapter
from ldm.models.adapters.fuse import UsedLora, apply_loras
from ldm.models.adapters.lora import lora_parameters
from ldm.models.families.registry import family_of_folder
from ldm.models.loading.components import load_network, load_tokenizer, save_network
from ldm.models.loading.folder import check_folder, read_defaults, read_object, weights_variant
from ldm.models.loading.original_file import load_single_file
from ldm.models.loading.source import find_model
from ldm.models.parts import ModelParts, assemble, default_size

__all__ = [
    "LoadedModel",
    "ModelParts",
    "default_size",
    "load_model",
    "load_parts",
    "save_parts",
    "save_small_files",
]


@dataclass(frozen=True)
class LoadedModel:
    """A model and where it comes from.

    Attributes:
        place: the folder or the single file that it was loaded from.
        model_id: a name without a path.
        loras: what was added to the weights in `place`.
    """

    parts: ModelParts
    place: Path
    model_id: str
    loras: tuple[UsedLora, ...] = ()


@collector_paused()
def load_model(
    model: str | Path,
    *,
    loras: Sequence[tuple[str | Path, float]] = (),
    dtype: torch.dtype = torch.float32,
) -> LoadedModel:
    """Load a model, on the CPU, in evaluation mode, without gradients.

    Adapters and LoRAs are added in float32; the sum is rounded to `dtype` once.

    Args:
        model: as of `ldm.models.loading.source.find_model`.
        loras: files or folders as of `ldm.models.adapters.lora_files.read_lora_file`, each with its weight.
        dtype: of the networks; the autoencoder stays in float32, as it may overflow.

    Raises:
        UserError: there is no such model or LoRA, or it is incomplete, damaged or not allowed.
    """
    place, model_id = find_model(model)
    base, adapters = adapter_chain(place)
    is_changed = bool(adapters or loras)
    load = load_single_file if base.is_file() else _load_folder
    parts = load(base, torch.float32 if is_changed else dtype)
    for folder, adapter in adapters:
        apply_adapter(folder, adapter, parts)
    used = apply_loras(parts, loras)
    if is_changed:
        _round(parts, dtype)
    if adapters:
        parts.defaults = read_defaults(place, *default_size(parts.denoiser, parts.autoencoder))
    return LoadedModel(parts, place, model_id, used)


def load_parts(model: str | Path, *, dtype: torch.dtype = torch.float32) -> ModelParts:
    """The parts alone of `load_model`; arguments and errors as there."""
    return load_model(model, dtype=dtype).parts


def _load_folder(folder: Path, dtype: torch.dtype) -> ModelParts:
    """A folder in the diffusers layout: recognise the family, check, load each component, read the defaults."""
    family = family_of_folder(folder)
    check_folder(folder)
    components: dict[str, Any] = {}
    for name, component in family.networks.items():
        own_dtype = torch.float32 if component.keep_float32 else dtype
        components[name] = load_network(component, folder / name, own_dtype, weights_variant(folder, name))
    for name, component in family.tokenizers.items():
        components[name] = load_tokenizer(folder / name, component)
    scheduler_config = read_object(folder / "scheduler" / "scheduler_config.json")
    parts = assemble(folder, family, components, scheduler_config)
    parts.defaults = read_defaults(folder, parts.defaults.height, parts.defaults.width)
    return parts


def _round(parts: ModelParts, dtype: torch.dtype) -> None:
    """Give the networks their number format, after everything has been added to them."""
    components = parts.family.components
    for name, network in parts.networks().items():
        if not components[name].keep_float32:
            nn.Module.to(network, dtype)
        network.eval().requires_grad_(False)


def save_parts(
    parts: ModelParts,
    folder: Path,
    *,
    dtype: torch.dtype = torch.float32,
    variant: str | None = None,
    max_shard_size: str = "10GB",
    provenance: dict[str, Any] | None = None,
    replace: bool = False,
) -> None:
    """Write a stock diffusers folder, which the family's pipeline class loads; complete or not at all.

    Args:
        dtype: that the weights are stored in.
        variant: goes into the names of the weights' files, such as "fp16".
        max_shard_size: larger safetensors are split, such as "14MB".
        provenance: written into `ldm.json` beside the defaults: where the model comes from.
        replace: overwrite an existing folder.

    Raises:
        UserError: the folder exists, the disk is full or not writable, or the layout cannot hold the model.
    """
    _check_plain(parts)
    with new_folder(folder, replace=replace) as temporary:
        for name, network in parts.networks().items():
            save_network(network, temporary / name, dtype, max_shard_size, variant)
        save_small_files(parts, temporary)
        write_json(
            temporary / "ldm.json",
            {"defaults": parts.defaults.model_defaults(), "provenance": provenance or {}},
        )


def save_small_files(parts: ModelParts, folder: Path) -> None:
    """Write what a stock folder has besides its networks: tokenizers, scheduler and the list of components.

    Raises:
        UserError: a folder cannot hold the model.
    """
    _check_plain(parts)
    components = parts.components()
    for name in parts.family.tokenizers:
        _save_tokenizer(components[name], folder / name)
    write_json(folder / "scheduler" / "scheduler_config.json", parts.scheduler_config)
    write_json(folder / "model_index.json", _model_index(parts))


def _check_plain(parts: ModelParts) -> None:
    """Refuse what a reader of the folder would not find in it: layers of an adapter, tokens of several vectors."""
    for network in parts.networks().values():
        if lora_parameters(network) or any(
            isinstance(module, TokenEmbedding) for module in network.modules()
        ):
            raise UserError(
                "an adapter is being trained in this model", "save the adapter in a folder of its own"
            )
    components = parts.components()
    for name in parts.family.tokenizers:
        if tokens := expanded_tokens(components[name]):
            raise UserError(
                f"{tokens[0]} has several vectors, which a tokenizer's files cannot hold",
                "keep the adapter in a folder of its own",
            )


def _save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """tokenizer.json for current readers, vocab.json and merges.txt for older ones."""
    tokenizer.save_pretrained(folder)
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    write_json(folder / "vocab.json", model["vocab"])
    write_bytes(folder / "merges.txt", "\n".join(["#version: 0.2", *merges, ""]).encode())


def _model_index(parts: ModelParts) -> dict[str, Any]:
    import diffusers

    family = parts.family
    listed: dict[str, list[str | None]] = {name: [None, None] for name in family.optional}
    listed |= {name: [one.library, one.classes[0]] for name, one in family.components.items()}
    listed["scheduler"] = ["diffusers", parts.scheduler_config.get("_class_name", "DDIMScheduler")]
    head = {"_class_name": family.pipeline_class, "_diffusers_version": diffusers.__version__}
    return head | dict(sorted({**listed, **family.pipeline_settings}.items()))

"""The format "diffusers": a folder that `DiffusionPipeline.from_pretrained` loads without any code of ours."""

import copy
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ldm.errors import UserError
from ldm.export.export_options import ExportOptions
from ldm.export.export_source import ExportSource
from ldm.export.formats.exporter import ExportedModel, ReadBack, Usage, from_pretrained, literal
from ldm.export.verify.compare import verify
from ldm.models.adapters.folder import LORA_FILE
from ldm.models.adapters.lora import LoraWeights, apply_lora
from ldm.models.adapters.lora_files import write_lora_diffusers
from ldm.models.devices import DTYPES
from ldm.models.loading.model import ModelParts, load_parts, save_parts, save_small_files

VARIANTS = {torch.float16: "fp16", torch.bfloat16: "bf16"}
"""The part of a file's name that gives its number format, if asked for."""


def export_folder(source: ExportSource, folder: Path, options: ExportOptions, name: str) -> ReadBack:
    """An `Exporter`."""
    dtype = DTYPES[options.dtype]
    expected = write_diffusers(
        source,
        folder,
        dtype=dtype,
        variant=options.variant,
        max_shard_size=options.max_shard_size,
        fuse=options.fuse,
    )
    variant = VARIANTS[dtype] if options.variant else None
    if options.fuse:
        return lambda: (verify(expected, "diffusers", folder=folder, variant=variant),)
    return lambda: (verify(expected, "lora", folder=folder, file=folder / LORA_FILE, variant=variant),)


def folder_usage(exported: ExportedModel) -> Usage:
    """A `UsageOf`."""
    lines = [from_pretrained(exported.place, exported.folder)]
    if not exported.has_separate_lora:
        return Usage(tuple(lines), model=exported.place)
    lines.append(f"pipe.load_lora_weights({literal(exported.place)}, weight_name={literal(LORA_FILE)})")
    lora = f"{exported.name}/{LORA_FILE}"
    return Usage(tuple(lines), model=exported.place, lora=lora, needs_download=True)


def write_diffusers(
    source: ExportSource,
    folder: Path,
    *,
    dtype: torch.dtype,
    variant: bool = False,
    max_shard_size: str = "10GB",
    fuse: bool = True,
) -> ModelParts:
    """Write a stock folder; returns the model that a reader should get, in float32.

    Args:
        dtype: the number format of the stored weights.
        variant: name the files after the dtype, such as `diffusion_pytorch_model.fp16.safetensors`.
        max_shard_size: split larger safetensors files, such as "2GB".
        fuse: add a LoRA to the weights; otherwise write the base unchanged, and the LoRA's file beside it.

    Raises:
        UserError: the dtype has no variant, there is no LoRA to keep apart, or the disk is full.
    """
    if variant and dtype not in VARIANTS:
        raise UserError("float32 has no variant", "leave --variant out, or choose --dtype float16")
    parts = source.parts if fuse else _base_parts(source)
    provenance: dict[str, Any] = {"source": source.model_id, "source_weights_hash": source.weights_hash}
    if source.identity:
        provenance["source_parts"] = dict(source.identity.parts)
    save_parts(
        parts,
        folder,
        dtype=dtype,
        variant=VARIANTS[dtype] if variant else None,
        max_shard_size=max_shard_size,
        provenance=provenance,
    )
    if fuse:
        return rounded(parts, dtype)
    assert source.lora is not None
    write_lora_diffusers(source.lora, folder / LORA_FILE)
    return with_lora(rounded(parts, dtype), source.lora)


def rounded(parts: ModelParts, dtype: torch.dtype) -> ModelParts:
    """The same model with its weights rounded to `dtype`, in float32 again."""
    if dtype == torch.float32:
        return parts
    copied = copy.deepcopy(parts)
    for network in copied.networks().values():
        nn.Module.to(network, dtype)  # diffusers' own `to` warns
        nn.Module.to(network, torch.float32)
    return copied


def _base_parts(source: ExportSource) -> ModelParts:
    if source.lora is None or source.base is None:
        raise UserError(f"{source.model_id} has no LoRA to keep apart", "leave --keep-lora-apart out")
    return load_parts(source.base)


def with_lora(parts: ModelParts, weights: LoraWeights) -> ModelParts:
    """A copy of a model with a LoRA fused in."""
    copied = copy.deepcopy(parts)
    apply_lora(copied.lora_networks(), weights)
    return copied


def write_configs(parts: ModelParts, folder: Path) -> None:
    """Write a stock folder without weights: what a reader of a single file needs beside it."""
    for name, network in parts.networks().items():
        if hasattr(network, "save_config"):
            network.save_config(folder / name)
        else:  # transformers
            network.config.save_pretrained(folder / name)
    save_small_files(parts, folder)

"""The stock diffusers folder: what `DiffusionPipeline.from_pretrained` loads without any code of ours."""

import copy
from pathlib import Path

import torch
from torch import nn

from ldm.errors import UserError
from ldm.export.export_source import ExportSource
from ldm.models.adapters.folder import LORA_FILE
from ldm.models.adapters.lora import LoraWeights, apply_lora
from ldm.models.adapters.lora_files import write_lora_diffusers
from ldm.models.loading.model import ModelParts, load_parts, save_parts, save_small_files

VARIANTS = {torch.float16: "fp16", torch.bfloat16: "bf16"}
"""What stands in the files' names for a number format, where it is asked for."""


def write_diffusers(
    source: ExportSource,
    folder: Path,
    *,
    dtype: torch.dtype,
    variant: bool = False,
    max_shard_size: str = "10GB",
    fuse: bool = True,
) -> ModelParts:
    """Write a stock folder; returns the model that it means, in float32.

    Args:
        dtype: that the weights are stored in.
        variant: name the files after the dtype, such as `diffusion_pytorch_model.fp16.safetensors`.
        max_shard_size: larger safetensors are split, such as "2GB".
        fuse: a LoRA is added to the weights; else the base is written as it is, the LoRA's file beside it.

    Raises:
        UserError: the format has no variant, there is no LoRA to keep apart, or the disk is full.
    """
    if variant and dtype not in VARIANTS:
        raise UserError("a variant of float32", "leave --variant out, or choose --dtype float16")
    parts = source.parts if fuse else _base_parts(source)
    provenance = {"source": source.model_id, "source_weights_hash": source.weights_hash}
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
    """The same model with its weights as `dtype` stores them, in float32 again."""
    if dtype == torch.float32:
        return parts
    copied = copy.deepcopy(parts)
    for network in networks(copied):
        nn.Module.to(network, dtype)  # diffusers' own `to` warns
        nn.Module.to(network, torch.float32)
    return copied


def networks(parts: ModelParts) -> tuple[nn.Module, nn.Module, nn.Module]:
    """The diffusers and transformers networks inside."""
    return parts.denoiser.unet, parts.autoencoder.vae, parts.text_encoder.model


def _base_parts(source: ExportSource) -> ModelParts:
    if source.lora is None or source.base is None:
        raise UserError(f"{source.model_id} has no LoRA to keep apart", "leave --keep-lora-apart out")
    return load_parts(source.base)


def with_lora(parts: ModelParts, weights: LoraWeights) -> ModelParts:
    """A copy of a model with a LoRA fused in."""
    copied = copy.deepcopy(parts)
    apply_lora({"unet": copied.denoiser.unet, "text_encoder": copied.text_encoder.model}, weights)
    return copied


def write_configs(parts: ModelParts, folder: Path) -> None:
    """Write a stock folder without weights: what a reader of a single file needs beside it."""
    parts.denoiser.unet.save_config(folder / "unet")
    parts.autoencoder.vae.save_config(folder / "vae")
    parts.text_encoder.model.config.save_pretrained(folder / "text_encoder")
    save_small_files(parts, folder)

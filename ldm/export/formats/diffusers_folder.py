"""The format "diffusers": a folder that `DiffusionPipeline.from_pretrained` loads without any code of ours."""

from functools import partial
from pathlib import Path
from typing import Any

import torch

from ldm.errors import UserError
from ldm.export.export_options import ExportOptions
from ldm.export.export_source import ExportSource, release
from ldm.export.formats.exporter import ExportedModel, ReadBack, Usage, from_pretrained, literal
from ldm.export.verify.compare import Expected, Verdict, expect, expect_lora, verify
from ldm.models.adapters.folder import LORA_FILE
from ldm.models.adapters.lora import LoraWeights
from ldm.models.adapters.lora_files import write_lora_diffusers
from ldm.models.devices import DTYPES
from ldm.models.loading.model import ModelParts, load_parts, save_parts, save_small_files

VARIANTS = {torch.float16: "fp16", torch.bfloat16: "bf16"}
"""The part of a file's name that gives its number format, if asked for."""


def export_folder(source: ExportSource, folder: Path, options: ExportOptions, name: str) -> ReadBack:
    """An `Exporter`."""
    dtype = DTYPES[options.dtype]
    if options.variant and dtype not in VARIANTS:
        raise UserError("float32 has no variant", "leave --variant out, or choose --dtype float16")
    variant = VARIANTS[dtype] if options.variant else None
    write = partial(_write_model, source, folder, dtype, variant, options.max_shard_size)
    if options.fuse:
        write(source.weights())

        def read_back() -> tuple[Verdict, ...]:
            expected = expect_rounded(source, dtype)
            return (verify(expected, "diffusers", folder=folder, variant=variant),)

        return read_back
    if source.lora is None or source.base is None:
        raise UserError(f"{source.model_id} has no LoRA to keep apart", "leave --keep-lora-apart out")
    if source.lora.is_lokr:
        raise UserError(
            f"{source.model_id} is a LoKr, which diffusers' load_lora_weights does not read",
            "leave --keep-lora-apart out",
        )
    source.release()
    base, lora, file = load_parts(source.base), source.lora, folder / LORA_FILE
    write(base)
    write_lora_diffusers(lora, file)

    def read_both() -> tuple[Verdict, ...]:
        expected = expect_with_lora(base, dtype, lora)
        return (verify(expected, "lora", folder=folder, file=file, variant=variant),)

    return read_both


def folder_usage(exported: ExportedModel) -> Usage:
    """A `UsageOf`."""
    stock = exported.pipeline_class
    lines = [from_pretrained(stock, exported.place, exported.folder)]
    if not exported.has_separate_lora:
        return Usage(tuple(lines), pipeline_class=stock, model=exported.place)
    lines.append(f"pipe.load_lora_weights({literal(exported.place)}, weight_name={literal(LORA_FILE)})")
    lora = f"{exported.name}/{LORA_FILE}"
    return Usage(tuple(lines), pipeline_class=stock, model=exported.place, lora=lora, needs_download=True)


def _write_model(
    source: ExportSource,
    folder: Path,
    dtype: torch.dtype,
    variant: str | None,
    max_shard_size: str,
    parts: ModelParts,
) -> None:
    """Write a stock folder of these parts.

    Raises:
        UserError: a weight is too large for `dtype`, or the disk is full.
    """
    provenance: dict[str, Any] = {"source": source.model_id, "source_weights_hash": source.weights_hash}
    if source.identity:
        provenance["source_parts"] = dict(source.identity.parts)
    save_parts(
        parts, folder, dtype=dtype, variant=variant, max_shard_size=max_shard_size, provenance=provenance
    )


def expect_rounded(source: ExportSource, dtype: torch.dtype) -> Expected:
    """What a reader should get of a model stored in `dtype`. The source's weights are released."""
    parts = source.weights()
    try:
        round_weights(parts, dtype)
        return expect(parts)
    finally:  # they are no longer the source's
        release(parts)


def expect_with_lora(base: ModelParts, dtype: torch.dtype, weights: LoraWeights) -> Expected:
    """What a reader should get of a LoRA on a base stored in `dtype`. The base's weights are released."""
    try:
        round_weights(base, dtype)
        return expect_lora(base, weights)
    finally:
        release(base)


@torch.no_grad()
def round_weights(parts: ModelParts, dtype: torch.dtype) -> None:
    """Round a model's weights to `dtype`, in place; they keep their own number format."""
    if dtype == torch.float32:
        return
    for network in parts.networks().values():
        for tensor in network.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(tensor.to(dtype))


def write_configs(parts: ModelParts, folder: Path) -> None:
    """Write a stock folder without weights: what a reader of a single file needs beside it."""
    for name, network in parts.networks().items():
        if hasattr(network, "save_config"):
            network.save_config(folder / name)
        else:  # transformers
            network.config.save_pretrained(folder / name)
    save_small_files(parts, folder)

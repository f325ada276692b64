"""The formats of a LoRA: diffusers' names, peft's layout, and kohya's names."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from ldm.errors import UserError
from ldm.export.export_options import ExportOptions
from ldm.export.export_source import ExportSource
from ldm.export.formats.diffusers_folder import expect_with_lora
from ldm.export.formats.exporter import ExportedModel, ReadBack, Usage, from_pretrained, literal
from ldm.export.formats.lora_metadata import lora_metadata
from ldm.export.formats.single_file import has_known_unet
from ldm.export.verify.compare import Verdict, verify
from ldm.io.safetensors_writer import cast_finite
from ldm.io.temporary import working_folder
from ldm.models.adapters.folder import LORA_FILE
from ldm.models.adapters.lora import LoraWeights
from ldm.models.adapters.lora_files import write_lora_diffusers, write_lora_kohya, write_lora_peft
from ldm.models.devices import DTYPES
from ldm.models.loading.folder import is_adapter
from ldm.models.loading.model import load_parts, save_parts
from ldm.models.loading.source import find_model

PROGRAMS = {"models/Lora": "AUTOMATIC1111's web UI", "models/loras": "ComfyUI"}
"""Folders in which other programs look for a LoRA."""


def export_lora_diffusers(source: ExportSource, folder: Path, options: ExportOptions, name: str) -> ReadBack:
    """An `Exporter`: one file with diffusers' names. Refuses a LoKr, which its `load_lora_weights` does not read."""
    if source.lora is not None and source.lora.is_lokr:
        raise UserError(
            f"{source.model_id} is a LoKr, which diffusers' load_lora_weights does not read",
            "choose --format lora-kohya or lora-peft",
        )
    weights, dtype = _rounded_lora(source, options), DTYPES[options.dtype]
    write_lora_diffusers(weights, folder / LORA_FILE, _metadata(source, options), dtype=dtype)
    return _read_back(source, weights, "lora", folder / LORA_FILE)


def export_lora_peft(source: ExportSource, folder: Path, options: ExportOptions, name: str) -> ReadBack:
    """An `Exporter`: a folder for each network, as peft has them."""
    weights = _rounded_lora(source, options)
    write_lora_peft(weights, folder, dtype=DTYPES[options.dtype])
    return _read_back(source, weights, "peft", folder)


def export_lora_kohya(source: ExportSource, folder: Path, options: ExportOptions, name: str) -> ReadBack:
    """An `Exporter`: one file with kohya's names. Refuses a DoRA, which programs scale differently."""
    weights, file = _rounded_lora(source, options), folder / f"{name}.safetensors"
    if any(config.get("use_dora") for config in weights.configs.values()):
        raise UserError(
            "programs disagree on what a DoRA with kohya's names means",
            "choose --format lora-diffusers or lora-peft",
        )
    metadata, names = _metadata(source, options), source.parts.family.lora
    if not has_known_unet(source.parts):  # its layers have other names in single files than the family's
        names = {part: replace(each, kohya_is_original=False) for part, each in names.items()}
    write_lora_kohya(weights, file, metadata, dtype=DTYPES[options.dtype], lora=names)
    return _read_back(source, weights, "lokr" if weights.is_lokr else "lora", file)


def lora_diffusers_usage(exported: ExportedModel) -> Usage:
    """A `UsageOf`."""
    return _file_usage(exported, LORA_FILE)


def lora_kohya_usage(exported: ExportedModel) -> Usage:
    """A `UsageOf`; other programs are named only if they know the base model's UNet."""
    programs = PROGRAMS if has_known_unet(exported.source.parts) else {}
    usage = _file_usage(exported, f"{exported.name}.safetensors", programs)
    lora = exported.source.lora
    return replace(usage, python=()) if lora is not None and lora.is_lokr else usage


def lora_peft_usage(exported: ExportedModel) -> Usage:
    """A `UsageOf`."""
    lora = exported.source.lora
    loads = [
        f"pipe.{part} = PeftModel.from_pretrained(pipe.{part}, {literal(exported.place)}, subfolder={literal(part)})"
        for part in (["unet", "text_encoder"] if lora is None else lora.configs)
    ]
    return Usage(
        python=(from_pretrained(exported.pipeline_class, exported.base_place), *loads),
        pipeline_class=exported.pipeline_class,
        imports=("from peft import PeftModel",),
        model=exported.base_place,
        lora=exported.name,
        needs_download=True,
    )


def _file_usage(exported: ExportedModel, file: str, programs: dict[str, str] | None = None) -> Usage:
    load = f"pipe.load_lora_weights({literal(exported.place)}, weight_name={literal(file)})"
    return Usage(
        python=(from_pretrained(exported.pipeline_class, exported.base_place), load),
        pipeline_class=exported.pipeline_class,
        model=exported.base_place,
        lora=f"{exported.name}/{file}",
        needs_download=True,
        programs=programs or {},
    )


def _rounded_lora(source: ExportSource, options: ExportOptions) -> LoraWeights:
    """The LoRA's weights, rounded as they will be stored."""
    if source.lora is None:
        raise UserError(
            f"{source.model_id} is not a LoRA", "choose --format diffusers, or name a run of trainable: lora"
        )
    dtype: torch.dtype = DTYPES[options.dtype]
    rounded = {name: cast_finite(name, tensor, dtype).float() for name, tensor in source.lora.tensors.items()}
    return LoraWeights(rounded, source.lora.configs)


def _metadata(source: ExportSource, options: ExportOptions) -> dict[str, str]:
    return lora_metadata(source, title=options.title or source.model_id, licence=options.licence)


def _read_back(source: ExportSource, weights: LoraWeights, reader: str, file: Path) -> ReadBack:
    def read_back() -> tuple[Verdict, ...]:
        source.release()
        with _stock_base(source) as base:
            expected = expect_with_lora(load_parts(base), torch.float32, weights)
            return (verify(expected, reader, folder=base, file=file),)

    return read_back


@contextmanager
def _stock_base(source: ExportSource) -> Iterator[Path]:
    """A stock folder of the LoRA's base; a temporary one if the base is itself an adapter."""
    assert source.adapter is not None
    assert source.base is not None
    base = source.base
    if (found := find_model(source.adapter.base)[0]) == base or not is_adapter(found):
        yield base
        return
    with working_folder("base") as temporary:
        save_parts(load_parts(found), temporary / "model")
        yield temporary / "model"

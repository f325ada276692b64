"""The formats: what each writes, who reads it back, and what the model must then mean."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from ldm.errors import UserError
from ldm.export.export_options import DTYPES, ExportOptions
from ldm.export.export_source import ExportSource
from ldm.export.formats.diffusers_folder import VARIANTS, rounded, with_lora, write_configs, write_diffusers
from ldm.export.verify.compare import Verdict, verify
from ldm.models.adapters.folder import LORA_FILE
from ldm.models.adapters.lora import LoraWeights
from ldm.models.loading.folder import is_adapter
from ldm.models.loading.model import load_parts, save_parts
from ldm.models.loading.source import find_model

ReadBack = Callable[[], tuple[Verdict, ...]]
"""Has others read what was written, as often as it is called."""

Writer = Callable[[ExportSource, Path, ExportOptions, str], ReadBack]
"""Writes a model into a folder that is there and empty; the text names a single file."""


def _folder(source: ExportSource, folder: Path, options: ExportOptions, _: str) -> ReadBack:
    dtype = DTYPES[options.dtype]
    meant = write_diffusers(
        source,
        folder,
        dtype=dtype,
        variant=options.variant,
        max_shard_size=options.max_shard_size,
        fuse=options.fuse,
    )
    variant = VARIANTS[dtype] if options.variant else None
    if options.fuse:
        return lambda: (verify(meant, "diffusers", folder=folder, variant=variant),)
    return lambda: (verify(meant, "lora", folder=folder, file=folder / LORA_FILE, variant=variant),)


def _single_file(source: ExportSource, folder: Path, options: ExportOptions, name: str) -> ReadBack:
    from ldm.export.formats.single_file import modelspec_metadata, write_single_file

    dtype, file = DTYPES[options.dtype], folder / f"{name}.safetensors"
    metadata = modelspec_metadata(
        source.parts, title=options.title or source.model_id, licence=options.licence
    )
    write_single_file(source.parts, file, dtype=dtype, metadata=metadata)
    meant = rounded(source.parts, dtype)

    def read_back() -> tuple[Verdict, ...]:
        with TemporaryDirectory(prefix="ldm-configs-") as configs:  # sizes and words, which the file has not
            write_configs(meant, Path(configs))
            return (verify(meant, "single-file", folder=Path(configs), file=file),)

    return read_back


def _lora(kind: str, source: ExportSource, folder: Path, options: ExportOptions, name: str) -> ReadBack:
    dtype = DTYPES[options.dtype]
    weights = _rounded_lora(_own_lora(source), dtype)
    if kind == "kohya" and any(config["use_dora"] for config in weights.configs.values()):
        raise UserError(
            "a DoRA in kohya's naming means something else to each program",
            "choose --format lora-diffusers or lora-peft",
        )
    from ldm.export.formats.lora_formats import lora_metadata
    from ldm.models.adapters.lora_files import write_lora_diffusers, write_lora_kohya, write_lora_peft

    metadata = lora_metadata(source, title=options.title or source.model_id, licence=options.licence)
    if kind == "peft":
        file = folder
        write_lora_peft(weights, folder, dtype=dtype)
    elif kind == "kohya":
        file = folder / f"{name}.safetensors"
        write_lora_kohya(weights, file, metadata, dtype=dtype)
    else:
        file = folder / LORA_FILE
        write_lora_diffusers(weights, file, metadata, dtype=dtype)

    def read_back() -> tuple[Verdict, ...]:
        with _stock_base(source) as base:
            plain, reader = load_parts(base), "peft" if kind == "peft" else "lora"
            meant = with_lora(plain, weights)
            return (verify(meant, reader, folder=base, file=file, without_lora=plain),)

    return read_back


def _openvino(source: ExportSource, folder: Path, options: ExportOptions, _: str) -> ReadBack:
    from ldm.export.formats.openvino import write_openvino

    write_openvino(source.parts, folder)
    return lambda: (verify(source.parts, "openvino", folder=folder),)


WRITERS: dict[str, Writer] = {
    "diffusers": _folder,
    "single-file": _single_file,
    "lora-diffusers": partial(_lora, "diffusers"),
    "lora-peft": partial(_lora, "peft"),
    "lora-kohya": partial(_lora, "kohya"),
    "openvino": _openvino,
}
"""By the names of `ldm.export.export_options.FORMATS`."""


def _own_lora(source: ExportSource) -> LoraWeights:
    if source.lora is None:
        raise UserError(
            f"{source.model_id} is no LoRA", "choose --format diffusers, or name a run of trainable: lora"
        )
    return source.lora


def _rounded_lora(weights: LoraWeights, dtype: torch.dtype) -> LoraWeights:
    return LoraWeights({name: tensor.to(dtype) for name, tensor in weights.tensors.items()}, weights.configs)


@contextmanager
def _stock_base(source: ExportSource) -> Iterator[Path]:
    """A stock folder of what a LoRA stands on; written for the moment where that is an adapter itself."""
    assert source.adapter is not None
    assert source.base is not None
    base = source.base
    if (found := find_model(source.adapter.base)[0]) == base or not is_adapter(found):
        yield base
        return
    with TemporaryDirectory(prefix="ldm-base-") as temporary:
        save_parts(load_parts(found), Path(temporary))
        yield Path(temporary)

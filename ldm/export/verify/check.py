"""Comparing a model of any origin as we read it with how other libraries read it, for `ldm verify`."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from ldm.errors import UserError
from ldm.export.export_source import release
from ldm.export.formats.diffusers_folder import expect_with_lora, write_configs
from ldm.export.model_files import REPORT
from ldm.export.verify.compare import Expected, Verdict, expect, verify
from ldm.export.verify.inspect import OPENVINO, peft_parts
from ldm.io.json_files import read_object
from ldm.io.safetensors_header import read_header
from ldm.io.temporary import working_folder
from ldm.models.adapters.folder import LORA_FILE, identity_of_model, read_adapter
from ldm.models.adapters.lora_files import lora_files, read_lora_file
from ldm.models.adapters.lora_names import LOKR_KINDS, split_name
from ldm.models.identity import changed_parts
from ldm.models.loading.folder import is_adapter, weights_hash, weights_variant
from ldm.models.loading.model import ModelParts, load_parts, save_parts
from ldm.models.loading.source import find_model

RecordedBase = tuple[str | None, Mapping[str, str]]
"""The hash of a base's weights, and the hashes of its components; None and empty where they were not recorded."""


@dataclass(frozen=True)
class Reading:
    """How a model is read: the arguments of `ldm.export.verify.compare.verify`.

    Attributes:
        expected: what we get of it. The model itself is no longer in memory.
        reader: a key of `ldm.export.verify.readers.READERS`.
        folder: the reader's folder: the model's, a LoRA's base, or configurations.
        file: the single file, the LoRA file or peft's folder.
    """

    expected: Expected
    reader: str
    folder: Path
    file: Path | None = None
    variant: str | None = None


def check(path: Path, base: str | None = None) -> Verdict:
    """Read a model ourselves and with the library that others use, and compare the images.

    Args:
        path: a folder or a file of any origin.
        base: for a LoRA: the model that it was trained on.

    Raises:
        UserError: one of the two cannot read it, or a LoRA's base is missing or the wrong one.
    """
    with _reading(path, base) as reading:
        return verify(**vars(reading))


@contextmanager
def _reading(path: Path, base: str | None) -> Iterator[Reading]:
    if path.is_dir() and (path / "model_index.json").is_file():
        yield _folder(path)
        return
    file = path if path.is_file() else _only_file(path)
    with working_folder("check") as temporary:
        if file.is_dir() or _is_lora(file):
            yield _lora(file, base or _known_base(path), temporary, _recorded_base(path))
            return
        parts = load_parts(file)
        write_configs(parts, temporary)
        yield Reading(_expected(parts), "single-file", temporary, file)


def _folder(path: Path) -> Reading:
    if (path / OPENVINO).is_file():
        raise UserError(
            f"{path} contains networks for OpenVINO", "ldm export has compared them with their source"
        )
    parts, variant = load_parts(path), weights_variant(path, "unet")
    if (path / LORA_FILE).is_file():
        weights = read_lora_file(path / LORA_FILE, parts.lora_networks(), parts.family.lora)
        expected = expect_with_lora(parts, torch.float32, weights)
        return Reading(expected, "lora", path, path / LORA_FILE, variant)
    return Reading(_expected(parts), "diffusers", path, variant=variant)


def _expected(parts: ModelParts) -> Expected:
    """What we get of a model, whose weights are released."""
    try:
        return expect(parts)
    finally:
        release(parts)


def _lora(file: Path, base: str | None, temporary: Path, recorded: RecordedBase) -> Reading:
    """A LoRA on its base, which is written to a stock folder if it is not one."""
    if base is None:
        raise UserError(f"{file} is a LoRA", "name the model that it was trained on with --base")
    found, _ = find_model(base)
    recorded_weights, base_parts = recorded
    if recorded_weights is not None and weights_hash(found) != recorded_weights:
        raise UserError(
            f"{base} does not have the weights of {file}'s base", "name the model that it was trained on"
        )
    parts = load_parts(found)
    here = identity_of_model(parts, found).base_parts
    if base_parts and (changed := changed_parts(base_parts, here)):
        raise UserError(
            f"{base} does not have the same {', '.join(changed)} as {file}'s base",
            "name the model that it was trained on",
        )
    weights = read_lora_file(file, parts.lora_networks(), parts.family.lora)
    has_lokr = holds_lokr(file)
    if weights.changes and not has_lokr:
        raise UserError(
            f"{file} holds more than a LoRA, which diffusers and peft do not read",
            "`ldm generate --lora` reads it",
        )
    if found.is_file() or is_adapter(found):
        save_parts(parts, temporary)
        found = temporary
    reader = "peft" if file.is_dir() else "lokr" if has_lokr else "lora"
    expected = expect_with_lora(parts, torch.float32, weights)
    return Reading(expected, reader, found, file, weights_variant(found, "unet"))


def _only_file(folder: Path) -> Path:
    """The file in a folder without a complete model: a LoRA or a single file; peft's LoRA is the folder itself.

    Raises:
        UserError: there is none, or more than one.
    """
    if peft_parts(folder):
        return folder
    files = sorted(folder.glob("*.safetensors"))
    if len(files) != 1:
        raise UserError(f"{folder} contains {len(files)} safetensors files", "name the file to verify")
    return files[0]


def _is_lora(file: Path) -> bool:
    try:
        return bool(lora_files(file)) and any("lora" in name or ".lokr_" in name for name in _names(file))
    except UserError:
        return False


def holds_lokr(path: Path) -> bool:
    """Whether a LoRA's files hold a LoKr and nothing else."""
    names = [name for file in lora_files(path) for name in _names(file)]
    kinds = {kind for _, kind in filter(None, map(split_name, names))}
    return bool(kinds & set(LOKR_KINDS)) and kinds <= {*LOKR_KINDS, "alpha"}


def _names(file: Path) -> list[str]:
    return list(read_header(file).tensors)


def _known_base(path: Path) -> str | None:
    """The base that our adapter's folder names."""
    return read_adapter(path).base if path.is_dir() and is_adapter(path) else None


def _recorded_base(path: Path) -> RecordedBase:
    """What `ldm export` recorded of the base."""
    report = (path if path.is_dir() else path.parent) / REPORT
    source = read_object(report).get("source") if report.is_file() else None
    if not isinstance(source, dict):
        return None, {}
    weights, parts = source.get("base_weights_hash"), source.get("base_parts")
    return weights if isinstance(weights, str) else None, parts if isinstance(parts, dict) else {}

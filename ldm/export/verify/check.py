"""Comparing a model of any origin as we read it with how other libraries read it, for `ldm verify`."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open

from ldm.errors import UserError
from ldm.export.formats.diffusers_folder import with_lora, write_configs
from ldm.export.model_files import REPORT
from ldm.export.verify.compare import Verdict, verify
from ldm.export.verify.inspect import OPENVINO, peft_parts
from ldm.io.temporary import working_folder
from ldm.models.adapters.folder import LORA_FILE, read_adapter
from ldm.models.adapters.lora_files import lora_files, read_lora_file
from ldm.models.loading.folder import is_adapter, read_object, weights_hash, weights_variant
from ldm.models.loading.model import ModelParts, load_parts, save_parts
from ldm.models.loading.source import find_model


@dataclass(frozen=True)
class Reading:
    """How a model is read: the arguments of `ldm.export.verify.compare.verify`.

    Attributes:
        parts: the model as we read it.
        reader: a key of `ldm.export.verify.readers.READERS`.
        folder: the reader's folder: the model's, a LoRA's base, or configurations.
        file: the single file, the LoRA file or peft's folder.
        without_lora: the base alone, if a LoRA is read.
    """

    parts: ModelParts
    reader: str
    folder: Path
    file: Path | None = None
    variant: str | None = None
    without_lora: ModelParts | None = None


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
        yield Reading(parts, "single-file", temporary, file)


def _folder(path: Path) -> Reading:
    if (path / OPENVINO).is_file():
        raise UserError(
            f"{path} contains networks for OpenVINO", "ldm export has compared them with their source"
        )
    parts, variant = load_parts(path), weights_variant(path, "unet")
    if (path / LORA_FILE).is_file():
        weights = read_lora_file(path / LORA_FILE, parts.lora_networks(), parts.family.lora)
        return Reading(with_lora(parts, weights), "lora", path, path / LORA_FILE, variant, parts)
    return Reading(parts, "diffusers", path, variant=variant)


def _lora(file: Path, base: str | None, temporary: Path, recorded: str | None) -> Reading:
    """A LoRA on its base, which is written to a stock folder if it is not one."""
    if base is None:
        raise UserError(f"{file} is a LoRA", "name the model that it was trained on with --base")
    found, _ = find_model(base)
    if recorded is not None and weights_hash(found) != recorded:
        raise UserError(
            f"{base} does not have the weights of {file}'s base", "name the model that it was trained on"
        )
    parts = load_parts(found)
    weights = read_lora_file(file, parts.lora_networks(), parts.family.lora)
    if found.is_file() or is_adapter(found):
        save_parts(parts, temporary)
        found = temporary
    reader = "peft" if file.is_dir() else "lora"
    return Reading(with_lora(parts, weights), reader, found, file, weights_variant(found, "unet"), parts)


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
        return bool(lora_files(file)) and any("lora" in name for name in _names(file))
    except UserError:
        return False


def _names(file: Path) -> list[str]:
    with safe_open(file, "pt") as opened:
        return list(opened.keys())


def _known_base(path: Path) -> str | None:
    """The base that our adapter's folder names."""
    return read_adapter(path).base if path.is_dir() and is_adapter(path) else None


def _recorded_base(path: Path) -> str | None:
    """The hash of the base's weights, if `ldm export` recorded it."""
    report = (path if path.is_dir() else path.parent) / REPORT
    if not report.is_file():
        return None
    source = read_object(report).get("source")
    found = source.get("base_weights_hash") if isinstance(source, dict) else None
    return found if isinstance(found, str) else None

"""Inspecting a model of any origin, a folder, a LoRA or a single file: its files are read as data and never executed.

At most one tensor is in memory at a time.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ldm.diffusion.paths import prediction_type_of
from ldm.errors import UserError
from ldm.export.model_files import REPORT
from ldm.export.verify.finding import Finding, caught, refused
from ldm.export.verify.inspect_files import inspect_files
from ldm.export.verify.inspect_tensors import inspect_tensors
from ldm.io.files import sha256_file
from ldm.io.json_files import read_object
from ldm.models.adapters.folder import read_adapter
from ldm.models.families.family import Component, Family
from ldm.models.families.registry import family_of_folder
from ldm.models.loading.components import weights_faults
from ldm.models.loading.folder import (
    ADAPTER,
    ADAPTER_FILES,
    PEFT_CONFIG,
    PEFT_FILE,
    check_keys,
    folder_faults,
    is_adapter,
    read_defaults,
    weights_variant,
)

OPENVINO = "unet/openvino_model.xml"
LIBRARIES = ("diffusers", "transformers")


def inspect_folder(folder: Path) -> list[Finding]:
    """Everything worth knowing about a model before using it, sorted by path; without an error it is usable.

    Checked are: which files exist and whether they are the recorded ones (SHA-256 in export.json), pickles and code,
    the headers of safetensors, number formats, non-finite values, classes and keys of the configurations, and missing
    or unexpected weights.

    Args:
        folder: a model in the diffusers layout, the folder of an adapter, of peft or of single files, or a single file.

    Raises:
        UserError: the path does not exist.
    """
    if folder.is_file():
        found = [*inspect_files(folder.parent, [folder]), *inspect_tensors(folder.parent, [folder])]
        if folder.suffix != ".safetensors":
            found.append(Finding("error", folder.name, "not a model: a single file must be safetensors"))
    elif folder.is_dir():
        found = list(_of_folder(folder))
    else:
        raise UserError(f"{folder} does not exist", "name a model's folder or file")
    return sorted(dict.fromkeys(found), key=lambda finding: finding.path)


def _of_folder(folder: Path) -> Iterator[Finding]:
    yield from inspect_files(folder)
    if (folder / REPORT).is_file():
        yield from _record(folder)
    if (folder / OPENVINO).is_file():
        yield Finding("note", ".", "networks for OpenVINO")
    elif is_adapter(folder):
        yield from _adapter(folder)
    elif parts := peft_parts(folder):
        for part in parts:
            yield from _peft(folder, part)
    elif (folder / "model_index.json").is_file():
        yield from _model(folder)
    elif not any(folder.glob("*.safetensors")):
        yield Finding("error", ".", "not a model: it has no model_index.json and no safetensors")
    yield from inspect_tensors(folder)


def _model(folder: Path) -> Iterator[Finding]:
    """A folder in the diffusers layout: its configurations, and whether the weights match them."""
    faults = list(folder_faults(folder))
    yield from (refused(folder, ".", fault) for fault in faults)
    family = family_of_folder(folder)
    for name, component in family.networks.items():
        if (folder / name).is_dir():
            yield from _part(folder, name, component)
    if faults:
        return
    yield from _widths(folder, family)
    yield from caught(folder, "ldm.json", lambda: read_defaults(folder, 512, 512))
    index = read_object(folder / "model_index.json")
    predicts = prediction_type_of(read_object(folder / "scheduler" / "scheduler_config.json"))
    yield Finding(
        "note", ".", f"{index.get('_class_name')} in the diffusers layout, prediction type {predicts}"
    )


def _part(folder: Path, name: str, component: Component) -> Iterator[Finding]:
    try:
        faults = weights_faults(component, folder / name, weights_variant(folder, name))
    except UserError as error:
        yield refused(folder, name, error)
        return
    yield from (Finding("error", name, fault) for fault in faults)


def _widths(folder: Path, family: Family) -> Iterator[Finding]:
    """Components that do not fit each other, each of which is complete."""
    configs = {name: read_object(folder / name / "config.json") for name in family.networks}
    for what, wanted, given, part in family.widths(configs):
        if isinstance(wanted, int) and isinstance(given, int) and wanted != given:
            yield Finding("error", ".", f"the unet has {what} {wanted}, but the {part} has {given}")


def _adapter(folder: Path) -> Iterator[Finding]:
    """An adapter as `ldm train` writes it; its base may be anywhere and is not checked."""
    try:
        adapter = read_adapter(folder)
    except UserError as error:
        yield refused(folder, ADAPTER, error)
        return
    yield Finding("note", ADAPTER, f"{adapter.kind} for weights of hash {adapter.base_weights_hash[:12]}")
    wanted = ADAPTER_FILES[adapter.kind]
    if not (folder / wanted).is_file():
        yield Finding("error", ".", f"{wanted} is missing")
    yield from caught(folder, "ldm.json", lambda: read_defaults(folder, 512, 512))


def peft_parts(folder: Path) -> list[str]:
    """Where a folder has adapters in peft's layout: "." for the folder itself, or names of networks."""
    return [part for part in (".", "unet", "text_encoder") if (folder / part / PEFT_CONFIG).is_file()]


def _peft(folder: Path, part: str) -> Iterator[Finding]:
    """One adapter in peft's layout, in `folder` itself or in a subfolder named after the network that it changes."""
    path = folder / part / PEFT_CONFIG
    name = path.relative_to(folder).as_posix()
    try:
        config = read_object(path)
        check_keys(path, config)
    except UserError as error:
        yield refused(folder, name, error)
        return
    yield Finding("note", name, f"{config.get('peft_type')} in the layout of peft")
    mapping = config.get("auto_mapping")
    library = mapping.get("parent_library") if isinstance(mapping, dict) else None
    if library is not None and str(library).partition(".")[0] not in LIBRARIES:
        yield Finding("error", name, f"its base would be imported from {str(library)[:100]!r}")
    if not (folder / part / PEFT_FILE).is_file():
        yield Finding("error", part, f"{PEFT_FILE} is missing")


def _record(folder: Path) -> Iterator[Finding]:
    """Whether the files are those that the export recorded."""
    try:
        files = read_object(folder / REPORT).get("files")
    except UserError as error:
        yield refused(folder, REPORT, error)
        return
    if not isinstance(files, dict):
        yield Finding("error", REPORT, "it lists no files")
        return
    faults = {name: fault for name, entry in files.items() if (fault := _changed(folder, name, entry))}
    yield from (Finding("error", name, f"{fault}, according to {REPORT}") for name, fault in faults.items())
    same = len(files) - len(faults)
    yield Finding("note", REPORT, f"{same} of {len(files)} files are as recorded")
    for path in sorted(folder.rglob("*.safetensors")):
        if (name := path.relative_to(folder).as_posix()) not in files:
            yield Finding("warning", name, f"it is not recorded in {REPORT}")


def _changed(folder: Path, name: str, entry: Any) -> str | None:
    """What is wrong with one recorded file, or None. A name outside the folder is never opened."""
    recorded = entry.get("sha256") if isinstance(entry, Mapping) else None
    if Path(name).is_absolute() or ".." in Path(name).parts:
        return "it is outside the folder"
    if not (folder / name).is_file():
        return "it is missing"
    if not isinstance(recorded, str) or sha256_file(folder / name) != recorded:
        return "it has changed since the export"
    return None

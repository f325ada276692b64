"""The families that are known, and which one a model is of."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ldm.errors import UserError
from ldm.io.json_files import MAX_MODEL_JSON_BYTES, read_json
from ldm.models.families.family import Component, Configs, Family
from ldm.models.families.stable_diffusion import SD1, SD2, UPSCALER
from ldm.models.families.stable_diffusion_xl import SDXL, SDXL_REFINER

FAMILIES: list[Family] = [SD1, SD2, UPSCALER, SDXL, SDXL_REFINER]
"""All families. Later ones are asked first, so the first one takes what no other claims."""


@contextmanager
def registered(family: Family) -> Iterator[Family]:
    """Add a family for the duration of the block."""
    FAMILIES.append(family)
    try:
        yield family
    finally:
        FAMILIES.remove(family)


def family_of(configs: Configs) -> Family:
    """The family of a model with these configurations."""
    return next((family for family in reversed(FAMILIES) if family.matches(configs)), FAMILIES[0])


def family_of_folder(folder: Path) -> Family:
    """The family of a folder in the diffusers layout; of a damaged one, a guess, as the check that follows names it."""
    listed = _read(folder / "model_index.json")
    present = [name for name, value in listed.items() if isinstance(value, list) and value[-1:] != [None]]
    paths = [folder / name / "config.json" for name in component_names()]
    configs: dict[str, dict[str, Any]] = {name: {} for name in present}
    return family_of(configs | {path.parent.name: _read(path) for path in paths if path.is_file()})


def family_of_file(names: Collection[str]) -> Family | None:
    """The family of a single file with tensors of these names, or None."""
    for family in reversed(FAMILIES):
        if family.single_file is not None and family.single_file.matches(names):
            return family
    return None


def component_names() -> list[str]:
    """The names of all families' components."""
    return list(dict.fromkeys(name for family in FAMILIES for name in family.components))


def optional_names() -> list[str]:
    """The names of all families' components that are not loaded."""
    return list(dict.fromkeys(name for family in FAMILIES for name in family.optional))


def network_components() -> dict[str, Component]:
    """The components with weights of all families."""
    return {name: component for family in FAMILIES for name, component in family.networks.items()}


def lora_parts() -> list[str]:
    """The names of the networks that a LoRA may change, of all families."""
    return list(dict.fromkeys(name for family in FAMILIES for name in family.lora))


def text_lora_parts() -> dict[str, str]:
    """Those of `lora_parts` that are text encoders, with `LoraNames.inner` of each."""
    named = ((part, names) for family in FAMILIES for part, names in family.lora.items())
    return {part: names.inner for part, names in named if names.is_text}


def _read(path: Path) -> dict[str, Any]:
    """A JSON object; empty where there is none, which the check of the folder reports."""
    try:
        value = read_json(path, max_bytes=MAX_MODEL_JSON_BYTES)
    except UserError:
        return {}
    return value if isinstance(value, dict) else {}

"""Check a model folder in the diffusers layout before anything is loaded from it.

Only component classes on a list, only safetensors, and no configuration key that brings code with it.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pydantic import BaseModel

from ldm.diffusion.scheduler_names import OWN_SCHEDULER
from ldm.errors import UserError, unknown_name
from ldm.io.files import remembered_sha256
from ldm.io.json_files import read_json, read_object
from ldm.models.families.family import Family
from ldm.models.families.registry import family_of_folder, network_components
from ldm.models.generation_settings import GenerationSettings
from ldm.models.loading.component_files import check_files
from ldm.models.loading.weights_check import weights_files
from ldm.models.setting_limits import MAX_PROMPT_CHUNKS
from ldm.models.settings_reading import parse_settings

ADAPTER = "adapter.json"
"""What an adapter's folder has instead of `model_index.json`: see `ldm.models.adapters.folder`."""

ADAPTER_FILES = {
    "lora": "pytorch_lora_weights.safetensors",
    "embedding": "learned_embeds.safetensors",
    "controlnet": "diffusion_pytorch_model.safetensors",
}
"""The weights of each kind of adapter, by the names that diffusers looks for."""

ADAPTER_WEIGHTS = tuple(ADAPTER_FILES.values())

PEFT_CONFIG, PEFT_FILE = "adapter_config.json", "adapter_model.safetensors"
"""The files of an adapter in peft's format."""

CODE_KEYS = (
    "auto_map", "trust_remote_code", "custom_pipeline", "custom_pipelines", "custom_generate", "quantization_config",
    "compression_config", "kernel_config", "kernel_mapping", "use_kernels", "use_local_kernel", "allow_all_kernels",
)  # fmt: skip
"""Keys that make the libraries load code or another engine; so does every `..._implementation`, see below."""

VARIANTS = ("fp16", "bf16")
"""Weights to read, in this order, where there are no plain ones."""

MAX_TRAIN_TIMESTEPS = 100_000
"""The longest noise schedule, a hundred times the usual: tables of this length are computed."""


PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")


Defaults = GenerationSettings
"""What a model is best sampled with: `defaults` in its `ldm.json`, see `GenerationSettings.model_defaults`.

A folder of ours that does not set `max_prompt_chunks` has one chunk: a small network trained on one context makes worse
images with a second, even an empty one.
"""


class ModelFacts(BaseModel):
    """What is read of `ldm.json`."""

    defaults: dict[str, Any] = {}


def check_folder(folder: Path) -> None:
    """Refuse a folder that is not a model, is incomplete, or contains more than data.

    Raises:
        UserError: naming the file, the key and what is allowed.
    """
    for fault in folder_faults(folder):
        raise fault


def folder_faults(folder: Path) -> Iterator[UserError]:
    """Everything that `check_folder` refuses a folder for. No weights are read."""
    index_file = folder / "model_index.json"
    if not index_file.is_file():
        yield _no_model(folder)
        return
    try:
        index = read_object(index_file)
    except UserError as error:
        yield error
        return
    family = family_of_folder(folder)
    listed = {key: value for key, value in index.items() if isinstance(value, list)}
    for name, value in listed.items():
        yield from _fault(partial(_check_component, f"{index_file}: {name}", family, name, value))
    for name in family.components:
        yield from _fault(partial(_check_present, folder, name, listed.get(name)))
    yield from _fault(partial(check_keys, index_file, index))
    for name in family.components:
        if (folder / name).is_dir():
            yield from _component_faults(folder, family, name)


def _no_model(folder: Path) -> UserError:
    """What a folder without model_index.json is instead, where that can be told."""
    if folder.parent.name == "checkpoints":
        run = folder.absolute().parents[1]
        result = f"; the run's result is {run}" if (run / "pipeline").is_dir() else ""
        return UserError(
            f"{folder} is a checkpoint of a training run",
            f"`ldm export {folder} DEST` makes a model of it{result}",
        )
    if (folder / "checkpoints").is_dir():
        export = f"`ldm export {folder} DEST` makes a model of its newest weights"
        return UserError(f"{folder} is a run that has not finished", export)
    if any((folder / name).is_file() for name in (ADAPTER_WEIGHTS[0], PEFT_FILE)):
        return UserError(
            f"{folder} holds a LoRA", f"give it with --lora {folder}, and the model it is for as --model"
        )
    return UserError(f"{folder} is not a model folder", "it has no model_index.json (the diffusers layout)")


def _component_faults(folder: Path, family: Family, name: str) -> Iterator[UserError]:
    """What is wrong with the files of one component."""
    yield from _fault(partial(check_files, folder / name))
    for path in sorted((folder / name).glob("*.json")):
        yield from _fault(partial(_check_config, path, family.components[name].classes))
    if name in family.networks:
        yield from _fault(partial(weights_variant, folder, name))


def _fault(check: Callable[[], object]) -> Iterator[UserError]:
    try:
        check()
    except UserError as error:
        yield error


def _check_present(folder: Path, name: str, value: list[Any] | None) -> None:
    if not value or value[-1] is None:
        raise UserError(f"{folder / 'model_index.json'} has no {name}", "the model is incomplete")
    if not (folder / name).is_dir():
        raise UserError(f"{folder / name} does not exist", "the model is incomplete")


def _check_component(where: str, family: Family, name: str, value: list[Any]) -> None:
    """One `"name": [library, class]` of model_index.json."""
    library, class_name = value if len(value) == 2 else (None, str(value))
    unused = name in (*family.optional, *family.ignored) and library in ("transformers", "stable_diffusion")
    if class_name is None or unused:
        return
    if name not in family.components:
        raise UserError(
            f"{where} is a component that is not supported", f"supported: {', '.join(family.components)}"
        )
    if library not in ("diffusers", "transformers"):
        raise UserError(f"{where} comes from {library!r}", "only diffusers and transformers are used")
    classes = family.components[name].classes
    if class_name not in classes:
        raise UserError(f"{where} is a {class_name}", f"supported: {', '.join(classes)}")


def _check_config(path: Path, classes: tuple[str, ...]) -> None:
    """One JSON file of a component: its size, and of a configuration the class and the keys."""
    if path.name == PEFT_CONFIG:  # transformers would load the adapter beside it into the network
        raise UserError(f"{path} changes the model that the weights beside it mean", "remove the file")
    if not path.name.endswith("config.json"):
        return
    config = read_object(path)
    check_keys(path, config)
    if (class_name := config.get("_class_name")) is not None and class_name not in classes:
        said = f"{path} is of the class {str(class_name)[:100]!r}"
        raise UserError(said, f"supported: {', '.join(classes)}")


def check_keys(path: Path, value: Any) -> None:
    """Refuse the keys that bring code or an engine with a configuration, at any depth.

    Also a noise schedule with more steps than there is any use for.

    Raises:
        UserError: naming the file and the key.
    """
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, list):
            waiting += item
        elif isinstance(item, dict):
            for key, inner in item.items():
                _check_key(path, key, inner)
            waiting += item.values()


def _check_key(path: Path, key: str, value: Any) -> None:
    names_engine = key.endswith(("_implementation", "_implementation_internal"))
    if value not in (None, False) and (key in CODE_KEYS or names_engine):
        raise UserError(f"{path} has the key {key!r}", "models that bring code are refused")
    if key == "num_train_timesteps" and isinstance(value, int | float) and value > MAX_TRAIN_TIMESTEPS:
        raise UserError(f"{path}: {key} is {value:,}", f"it must be at most {MAX_TRAIN_TIMESTEPS:,}")


def weights_variant(folder: Path, name: str) -> str | None:
    """Which safetensors of a component to read: None for the plain ones, "fp16" or "bf16" if only those exist.

    Raises:
        UserError: there are none, or the only weights are pickled.
    """
    stem = network_components()[name].stem
    assert stem is not None
    for variant in (None, *VARIANTS):
        if weights_files(folder / name, stem, variant):
            return variant
    pickles = sorted(path.name for path in (folder / name).iterdir() if path.name.endswith(PICKLES))
    if pickles:
        raise UserError(f"{folder / name / pickles[0]} is a pickle", "only safetensors are read")
    raise UserError(f"{folder / name} has no {stem}.safetensors", "the model is incomplete")


def read_defaults(
    folder: Path,
    height: int,
    width: int,
    kind: type[GenerationSettings] = GenerationSettings,
    usual: Mapping[str, Any] = MappingProxyType({}),
) -> GenerationSettings:
    """The model's defaults from `ldm.json`, with this size, and what is `usual` of its family, where the file has none.

    A folder without that file is a stock one of a large model: long prompts then have `MAX_PROMPT_CHUNKS`. A folder
    that names no sampler is sampled with the one of its scheduler config.

    Raises:
        UserError: an unknown key, or a value of the wrong type or out of range.
    """
    path = folder / "ldm.json"
    ours = path.is_file()
    given = read_json(path, ModelFacts).defaults if ours else {"max_prompt_chunks": MAX_PROMPT_CHUNKS}
    known = kind().model_defaults()
    for key in given:
        if key not in known:
            raise unknown_name(f"key in {path}", key, known)
    left_open = {"height": height, "width": width, "scheduler": OWN_SCHEDULER, **usual}
    return parse_settings({**left_open, **given}, kind, where=str(path))


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter, which needs its base, and not a complete model."""
    return (folder / ADAPTER).is_file() and not (folder / "model_index.json").exists()


def weights_hash(folder: Path) -> str:
    """One SHA-256 over the names and SHA-256 of all safetensors that are loaded.

    An adapter's covers its own files and the hash of its base; a single file's is the file's own.
    """
    if folder.is_file():
        return remembered_sha256(folder)
    files = sorted(path.relative_to(folder).as_posix() for path in _loaded_weights(folder))
    lines = [f"{remembered_sha256(folder / name)}  {name}\n" for name in files]
    if is_adapter(folder):
        lines.append(f"{read_object(folder / ADAPTER).get('base_weights_hash')}  base\n")
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def component_weights(folder: Path) -> Mapping[str, Sequence[str]]:
    """The SHA-256 of the safetensors of each network of a complete model; a single file holds all of them."""
    if folder.is_file():
        return dict.fromkeys(network_components(), (remembered_sha256(folder),))
    found = {name: _weights_of(folder, name) for name in family_of_folder(folder).networks}
    return {name: [remembered_sha256(path) for path in paths] for name, paths in found.items()}


def _loaded_weights(folder: Path) -> list[Path]:
    """An adapter's safetensors, or those of a model's components in the variant that is loaded."""
    if is_adapter(folder):
        return [folder / name for name in ADAPTER_WEIGHTS if (folder / name).is_file()]
    return [path for name in family_of_folder(folder).networks for path in _weights_of(folder, name)]


def _weights_of(folder: Path, name: str) -> list[Path]:
    """The safetensors of one network, in the variant that is loaded."""
    stem = network_components()[name].stem
    assert stem is not None
    return weights_files(folder / name, stem, weights_variant(folder, name))

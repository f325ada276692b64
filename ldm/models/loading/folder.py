"""A model's folder in the diffusers layout, checked before anything of it is loaded.

Only component classes on a list, only safetensors, and no key by which a configuration brings code with it.
"""

import hashlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from ldm.diffusion.scheduler_names import SCHEDULERS
from ldm.errors import UserError, unknown_name
from ldm.io.files import MAX_MODEL_JSON_BYTES, read_json, sha256_file
from ldm.models.generation_settings import MAX_PROMPT_CHUNKS, GenerationSettings, parse_settings
from ldm.models.loading.weights_check import STEMS, weights_files

COMPONENTS: dict[str, tuple[str, ...]] = {
    "unet": ("UNet2DConditionModel",),
    "vae": ("AutoencoderKL",),
    "text_encoder": ("CLIPTextModel",),
    "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
    "scheduler": tuple(sorted({entry.class_name for entry in SCHEDULERS.values()})),
}
"""The parts that are loaded, and the classes that may stand for them in `model_index.json`."""

NOT_LOADED = ("safety_checker", "feature_extractor", "image_encoder")
"""Parts of Stable Diffusion that may be there and are left alone."""

ADAPTER = "adapter.json"
"""What an adapter's folder has in place of `model_index.json`: see `ldm.models.adapters.folder`."""

ADAPTER_WEIGHTS = ("pytorch_lora_weights.safetensors", "learned_embeds.safetensors")
"""The files of a LoRA and of a textual inversion, by the names that diffusers looks for."""

CODE_KEYS = (
    "auto_map", "trust_remote_code", "custom_pipeline", "custom_pipelines", "custom_generate", "quantization_config",
    "compression_config", "kernel_config", "kernel_mapping", "use_kernels", "use_local_kernel", "allow_all_kernels",
)  # fmt: skip
"""Keys by which the libraries load code from elsewhere, or other engines; and every `..._implementation`, see below."""

VARIANTS = ("fp16", "bf16")
"""Of the weights: read, in this order, where there are no plain ones."""

MAX_TRAIN_TIMESTEPS = 100_000
"""Of a noise schedule, a hundred times the usual: tables of this length are computed."""

MAX_SIZE_PX = 2**14
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")


Defaults = GenerationSettings
"""What a model is best sampled with: `defaults` in its `ldm.json`, see `GenerationSettings.model_defaults`.

A folder of ours that does not set `max_prompt_chunks` has one chunk: a small network trained on one context makes worse
images with a second, even an empty one.
"""


def check_folder(folder: Path) -> None:
    """Refuse a folder that is no model, is incomplete, or asks for more than data.

    Raises:
        UserError: naming the file, the key and what is allowed.
    """
    for fault in folder_faults(folder):
        raise fault


def folder_faults(folder: Path) -> Iterator[UserError]:
    """Everything for which `check_folder` refuses a folder. No weights are read."""
    index_file = folder / "model_index.json"
    if not index_file.is_file():
        yield _no_model(folder)
        return
    try:
        index = read_object(index_file)
    except UserError as error:
        yield error
        return
    listed = {key: value for key, value in index.items() if isinstance(value, list)}
    for name, value in listed.items():
        yield from _fault(partial(_check_component, f"{index_file}: {name}", name, value))
    for name in COMPONENTS:
        yield from _fault(partial(_check_present, folder, name, listed.get(name)))
    yield from _fault(partial(check_keys, index_file, index))
    for name in COMPONENTS:
        if (folder / name).is_dir():
            yield from _part_faults(folder, name)


def _no_model(folder: Path) -> UserError:
    """What a folder without model_index.json is instead, where that can be told."""
    if (folder / "checkpoints").is_dir() or folder.parent.name == "checkpoints":
        export = f"`ldm export {folder} DEST` makes a model of its newest weights"
        return UserError(f"{folder} is a run that is not at its end", export)
    if any(
        (folder / name).is_file()
        for name in ("pytorch_lora_weights.safetensors", "adapter_model.safetensors")
    ):
        return UserError(
            f"{folder} holds a LoRA", f"give it with --lora {folder}, and the model it is for as --model"
        )
    return UserError(f"{folder} is no model folder", "it has no model_index.json (the diffusers layout)")


def _part_faults(folder: Path, name: str) -> Iterator[UserError]:
    """What is wrong with the files of one part."""
    for path in sorted((folder / name).glob("*.json")):
        yield from _fault(partial(_check_config, path, name))
    if name in STEMS:
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


def _check_component(where: str, name: str, value: list[Any]) -> None:
    """One `"name": [library, class]` of model_index.json."""
    library, class_name = value if len(value) == 2 else (None, str(value))
    if class_name is None or (name in NOT_LOADED and library in ("transformers", "stable_diffusion")):
        return
    if name not in COMPONENTS:
        raise UserError(f"{where} is a part that is not supported", f"supported: {', '.join(COMPONENTS)}")
    if library not in ("diffusers", "transformers"):
        raise UserError(f"{where} comes from {library!r}", "only diffusers and transformers are used")
    if class_name not in COMPONENTS[name]:
        raise UserError(f"{where} is a {class_name}", f"supported: {', '.join(COMPONENTS[name])}")


def _check_config(path: Path, name: str) -> None:
    """One JSON file of a part: its size, and of a configuration the class and the keys."""
    if path.name == "adapter_config.json":  # transformers would put the adapter beside it into the network
        raise UserError(f"{path} makes another model of the weights beside it", "remove the file")
    if path.stat().st_size > MAX_MODEL_JSON_BYTES:
        raise UserError(f"{path} has more than {MAX_MODEL_JSON_BYTES:,} bytes", "restore the file")
    if not path.name.endswith("config.json"):
        return
    config = read_object(path)
    check_keys(path, config)
    if (class_name := config.get("_class_name")) is not None and class_name not in COMPONENTS[name]:
        said = f"{path} is of the class {str(class_name)[:100]!r}"
        raise UserError(said, f"supported: {', '.join(COMPONENTS[name])}")


def check_keys(path: Path, value: Any) -> None:
    """Refuse the keys by which a configuration brings code or an engine with it, at any depth.

    Also a noise schedule of more steps than there is any use for.

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
    """Which safetensors of a component to read: None for the plain ones, "fp16" or "bf16" where only those are there.

    Raises:
        UserError: there are none, or the only weights are pickled.
    """
    files = sorted(path.name for path in (folder / name).iterdir())
    for variant in (None, *VARIANTS):
        if weights_files(folder / name, STEMS[name], variant):
            return variant
    pickles = [file for file in files if file.endswith(PICKLES)]
    if pickles:
        raise UserError(f"{folder / name / pickles[0]} is a pickle", "only safetensors are read")
    raise UserError(f"{folder / name} has no {STEMS[name]}.safetensors", "the model is incomplete")


def read_object(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object.

    Raises:
        UserError: it is missing, no JSON, or something else.
    """
    value = read_json(path, max_bytes=MAX_MODEL_JSON_BYTES)
    if not isinstance(value, dict):
        raise UserError(f"{path} holds no JSON object", "restore the file")
    return value


def read_defaults(
    folder: Path, height: int, width: int, kind: type[GenerationSettings] = GenerationSettings
) -> GenerationSettings:
    """The model's defaults from `ldm.json`, with this size where the file has none.

    Without that file the folder is a stock one, of a large model: long prompts then have `MAX_PROMPT_CHUNKS`.

    Raises:
        UserError: an unknown key, or a value of the wrong type or out of range.
    """
    path = folder / "ldm.json"
    ours = path.is_file()
    given = read_object(path).get("defaults", {}) if ours else {"max_prompt_chunks": MAX_PROMPT_CHUNKS}
    known = kind().model_defaults()
    for key in given:
        if key not in known:
            raise unknown_name(f"key in {path}", key, known)
    defaults = parse_settings({"height": height, "width": width, **given}, kind, where=str(path))
    if max(defaults.height, defaults.width) > MAX_SIZE_PX:
        said = f"{folder} asks for images of {defaults.height} x {defaults.width} pixels"
        raise UserError(said, f"at most {MAX_SIZE_PX} on a side: see ldm.json, and sample_size of the unet")
    return defaults


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter, which needs its base, and no whole model."""
    return (folder / ADAPTER).is_file() and not (folder / "model_index.json").exists()


def weights_hash(folder: Path) -> str:
    """One SHA-256 over the names and SHA-256 of all the safetensors that are loaded.

    An adapter's is over its own and the hash of its base; a single file's is the file's own.
    """
    if folder.is_file():
        return sha256_file(folder)
    files = sorted(path.relative_to(folder).as_posix() for path in _loaded_weights(folder))
    lines = [f"{sha256_file(folder / name)}  {name}\n" for name in files]
    if is_adapter(folder):
        lines.append(f"{read_object(folder / ADAPTER).get('base_weights_hash')}  base\n")
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _loaded_weights(folder: Path) -> list[Path]:
    """An adapter's safetensors, or those of a model's parts in the variant that is loaded; others may lie beside."""
    if is_adapter(folder):
        return [folder / name for name in ADAPTER_WEIGHTS if (folder / name).is_file()]
    found = []
    for name, stem in STEMS.items():
        found += weights_files(folder / name, stem, weights_variant(folder, name))
    return found

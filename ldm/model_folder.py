"""A model's folder in the diffusers layout, checked before anything of it is loaded.

Only component classes on a list, only safetensors, and no key by which a configuration brings code with it.
"""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

from ldm.errors import UserError, unknown_name
from ldm.files import read_json, sha256_file
from ldm.scheduler_names import SCHEDULERS
from ldm.types import MAX_PROMPT_CHUNKS

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
"""What an adapter's folder has in place of `model_index.json`: see `ldm.adapter_folder`."""

ADAPTER_WEIGHTS = ("pytorch_lora_weights.safetensors", "learned_embeds.safetensors")
"""The files of a LoRA and of a textual inversion, by the names that diffusers looks for."""

WEIGHTS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}
CODE_KEYS = ("auto_map", "trust_remote_code", "custom_pipeline", "quantization_config")
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


@dataclass(frozen=True)
class Defaults:
    """What a model is best sampled with: `defaults` in its `ldm.json`. Height and width are in pixels.

    A prompt beyond `max_prompt_chunks` contexts of the text encoder is cut off. A folder of ours that does not say is
    given one: a small network that was trained on one context draws worse with a second, even an empty one.
    """

    height: int
    width: int
    num_inference_steps: int = 25
    guidance_scale: float = 7.5
    guidance_rescale: float = 0.0
    scheduler: str = "dpmpp_2m"
    max_prompt_chunks: int = 1


def check_folder(folder: Path) -> None:
    """Refuse a folder that is no model, is incomplete, or asks for more than data.

    Raises:
        UserError: naming the file, the key and what is allowed.
    """
    index_file = folder / "model_index.json"
    if not index_file.is_file():
        raise UserError(f"{folder} is no model folder", "it has no model_index.json (the diffusers layout)")
    listed = {key: value for key, value in read_object(index_file).items() if isinstance(value, list)}
    for name, value in listed.items():
        _check_component(f"{index_file}: {name}", name, value)
    for name in COMPONENTS:
        if name not in listed or listed[name][-1] is None:
            raise UserError(f"{index_file} has no {name}", "the model is incomplete")
        if not (folder / name).is_dir():
            raise UserError(f"{folder / name} does not exist", "the model is incomplete")
    for path in [index_file, *_component_configs(folder)]:
        check_keys(path, read_object(path))
    for name in WEIGHTS:
        weights_variant(folder, name)


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


def _component_configs(folder: Path) -> Iterator[Path]:
    for name in COMPONENTS:
        yield from sorted((folder / name).glob("*config.json"))


def check_keys(path: Path, value: Any) -> None:
    """Refuse the keys by which a configuration brings code or an engine with it, at any depth."""
    if isinstance(value, list):
        for item in value:
            check_keys(path, item)
    elif isinstance(value, dict):
        for key, item in value.items():
            if item is not None and (key in CODE_KEYS or "attn_implementation" in key):
                raise UserError(f"{path} has the key {key!r}", "models that bring code are refused")
            check_keys(path, item)


def weights_variant(folder: Path, name: str) -> str | None:
    """Which safetensors of a component to read: None for the plain ones, "fp16" where only those are there.

    Raises:
        UserError: there are none, or the only weights are pickled.
    """
    files = sorted(path.name for path in (folder / name).iterdir())
    for variant in (None, "fp16"):
        stem = WEIGHTS[name] + (f".{variant}" if variant else "")
        if any(f.startswith((f"{stem}.safetensors", f"{stem}-")) and ".safetensors" in f for f in files):
            return variant
    pickles = [file for file in files if file.endswith(PICKLES)]
    if pickles:
        raise UserError(f"{folder / name / pickles[0]} is a pickle", "only safetensors are read")
    raise UserError(f"{folder / name} has no {WEIGHTS[name]}.safetensors", "the model is incomplete")


def read_object(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object.

    Raises:
        UserError: it is missing, no JSON, or something else.
    """
    value = read_json(path)
    if not isinstance(value, dict):
        raise UserError(f"{path} holds no JSON object", "restore the file")
    return value


def read_defaults(folder: Path, height: int, width: int) -> Defaults:
    """The model's defaults from `ldm.json`; where it is silent, this size, DPM-Solver++ 2M and 25 steps.

    Without that file the folder is a stock one, of a large model: long prompts then have `MAX_PROMPT_CHUNKS`.

    Raises:
        UserError: an unknown key, or a value of the wrong type.
    """
    path = folder / "ldm.json"
    ours = path.is_file()
    given = read_object(path).get("defaults", {}) if ours else {"max_prompt_chunks": MAX_PROMPT_CHUNKS}
    kinds = {f.name: type(f.default) if f.default is not MISSING else int for f in fields(Defaults)}
    for key, value in given.items():
        if key not in kinds:
            raise unknown_name(f"key in {path}", key, kinds)
        if type(value) is not kinds[key] and not (kinds[key] is float and type(value) is int):
            raise UserError(f"{path}: {key} is {value!r}", f"it must be of type {kinds[key].__name__}")
    return Defaults(**{"height": height, "width": width, **given})


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter, which needs its base, and no whole model."""
    return (folder / ADAPTER).is_file() and not (folder / "model_index.json").exists()


def weights_hash(folder: Path) -> str:
    """One SHA-256 over the names and SHA-256 of all the safetensors that are loaded.

    An adapter's is over its own and the hash of its base.
    """
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
    for name, stem in WEIGHTS.items():
        variant = weights_variant(folder, name)
        begin = re.escape(stem + (f".{variant}" if variant else ""))
        pattern = re.compile(begin + r"(-\d+-of-\d+)?\.safetensors")
        found += [path for path in (folder / name).iterdir() if pattern.fullmatch(path.name)]
    return found

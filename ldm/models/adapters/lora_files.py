"""LoRA files: written for diffusers, for peft and for kohya's programs, and read with the names of any of them.

diffusers   one file; the networks' configurations as JSON in the header. Our own adapters are stored this way.
peft        a folder a network, `adapter_config.json` beside `adapter_model.safetensors`
kohya       one file; each layer has its `.alpha`, which is lora_alpha and never the rank

The formats are told apart by names alone, so a file may mix them. Where no alpha is given, it is the rank.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, FiniteFloat, PositiveInt
from torch import Tensor, nn

from ldm.errors import UserError, warn
from ldm.io.files import open_tensors, read_tensors, write_json, write_tensors
from ldm.io.json_files import checked, parse_json, read_object
from ldm.io.safetensors_writer import TENSORS_SHA256
from ldm.models.adapters.kohya_metadata import check_network_args
from ldm.models.adapters.lora import LoraWeights, changeable_layers, is_lokr_config
from ldm.models.adapters.lora_layers import (
    LoraLayer,
    fit_layer,
    from_layers,
    lokr_layers,
    lokr_scale,
    one_alpha,
    to_layers,
)
from ldm.models.adapters.lora_names import (
    BUNDLED,
    LOKR_KINDS,
    PEFT_PREFIX,
    bundled_tokens,
    diffusers_name,
    foreign_kind,
    kohya_name,
    layer_names,
    peft_name,
    split_name,
)
from ldm.models.adapters.lycoris import FULL_KINDS, fit_change, full_change, written_factors
from ldm.models.adapters.patterns import MAX_PATTERNS
from ldm.models.adapters.peft_config import PeftConfig, PeftLokrConfig, read_peft_config
from ldm.models.families.family import LoraNames
from ldm.models.families.registry import lora_parts, text_lora_parts
from ldm.models.families.stable_diffusion import SD1
from ldm.models.loading.folder import ADAPTER_WEIGHTS, PEFT_CONFIG, PEFT_FILE, PICKLES

METADATA_KEY = "lora_adapter_metadata"
"""Where diffusers keeps the configurations in the header: as JSON, with the network's name before each key."""

NOTHING: Mapping[str, str] = {}


def write_lora_diffusers(
    weights: LoraWeights,
    path: Path,
    metadata: Mapping[str, str] = NOTHING,
    *,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write a LoRA as `pipe.load_lora_weights` of diffusers reads it.

    A LoKr, which that does not read, is written in the same way: our adapters are stored so.

    Args:
        metadata: further text for the header.
        dtype: that the weights are stored in.

    Raises:
        UserError: the disk is full or not writable.
    """
    text = text_lora_parts()
    tensors = _named(
        weights, lambda part, layer, kind: diffusers_name(part, layer, kind, is_text=part in text)
    )
    configs = {f"{part}.{k}": v for part, config in weights.configs.items() for k, v in config.items()}
    own = {METADATA_KEY: json.dumps(configs, sort_keys=True)}
    _write(path, tensors, {**metadata, **own}, dtype)


def write_lora_peft(weights: LoraWeights, folder: Path, *, dtype: torch.dtype = torch.float32) -> None:
    """Write a LoRA as `PeftModel.from_pretrained(pipe.unet, folder / "unet")` of peft reads it.

    The text encoder's files are in `text_encoder/`, with the layers' names of the installed transformers: peft knows no
    others.

    Raises:
        UserError: the disk is full or not writable.
    """
    tensors = _named(weights, lambda part, layer, kind: f"{part}.{PEFT_PREFIX}{peft_name(layer, kind)}")
    for part, config in weights.configs.items():
        own = {n.removeprefix(f"{part}."): t for n, t in tensors.items() if n.startswith(f"{part}.")}
        _write(folder / part / PEFT_FILE, own, {}, dtype)
        write_json(folder / part / PEFT_CONFIG, _peft_config(config))


def write_lora_kohya(
    weights: LoraWeights,
    path: Path,
    metadata: Mapping[str, str] = NOTHING,
    *,
    dtype: torch.dtype = torch.float32,
    lora: Mapping[str, LoraNames] = SD1.lora,
) -> None:
    """Write a LoRA with kohya's names, which most programs for Stable Diffusion read.

    Layers with another alpha than the most common one are rescaled to it: diffusers reads one alpha per network.
    The magnitudes of a DoRA are written as LyCORIS defines them, `m (W + dW) / |W + dW|` for each output; programs
    differ in how they read those. The factors of a LoKr have LyCORIS' names.

    Args:
        metadata: text for the header.
        dtype: that the weights are stored in.
        lora: the names of the model's family.

    Raises:
        UserError: the disk is full or not writable.
    """
    tensors: dict[str, Tensor] = {}
    for part, config in weights.configs.items():
        named = _kohya_lokr(weights, part) if is_lokr_config(config) else _kohya_lora(weights, part)
        for layer, kind, tensor in named:
            tensors[f"{kohya_name(layer, lora[part])}.{kind}"] = tensor
    _write(path, tensors, metadata, dtype)


def _kohya_lora(weights: LoraWeights, part: str) -> Iterator[tuple[str, str, Tensor]]:
    """The layer, the kind and the tensor of everything that is written of a network's LoRA."""
    for name, layer in one_alpha(to_layers(weights)[part]).items():
        yield name, "lora_down.weight", layer.down
        yield name, "lora_up.weight", layer.up
        yield name, "alpha", torch.tensor(layer.alpha)
        if layer.magnitude is not None:
            yield name, "dora_scale", layer.magnitude.reshape(-1, *[1] * (layer.up.ndim - 1))


def _kohya_lokr(weights: LoraWeights, part: str) -> Iterator[tuple[str, str, Tensor]]:
    """The same of a LoKr."""
    for name, factors in lokr_layers(weights, part).items():
        alpha, rank = lokr_scale(weights.configs[part], name)
        for kind, tensor in written_factors(factors, alpha, rank).items():
            yield name, kind, tensor


def read_lora(path: Path) -> LoraWeights:
    """A LoRA that `write_lora_diffusers` wrote; no network is needed to read it.

    Raises:
        UserError: the file is missing or damaged, or its header has no configuration.
    """
    tensors = read_tensors(path)
    configs = _header_configs(path)
    if not configs:
        raise UserError(f"{path} has no {METADATA_KEY} in its header", "restore the file")
    found: dict[str, Tensor] = {}
    inner = text_lora_parts()
    for name, tensor in tensors.items():
        stem, kind = split_name(name) or ("", "")
        part, _, layer = stem.partition(".")
        if kind not in ("down", "up", "magnitude", *LOKR_KINDS):
            raise UserError(f"{path}: {name} does not belong to a LoRA", "restore the file")
        found[f"{part}.{peft_name(inner.get(part, '') + layer.removeprefix('text_model.'), kind)}"] = tensor
    return LoraWeights(
        found, {part: _checked_config(path, part, config, found) for part, config in configs.items()}
    )


class _StoredConfig(BaseModel):
    """The types of the values in a stored configuration. Ranks must be those of tensors: see `_checked_config`."""

    r: PositiveInt
    lora_alpha: FiniteFloat
    target_modules: str | list[str]
    use_dora: bool = False
    rank_pattern: dict[str, PositiveInt] = {}
    alpha_pattern: dict[str, FiniteFloat] = {}


class _StoredLokr(BaseModel):
    """The same of a LoKr, whose factors peft never makes larger than the layer."""

    peft_type: str
    r: PositiveInt
    alpha: FiniteFloat
    target_modules: str | list[str]
    decompose_factor: int = -1
    rank_pattern: dict[str, PositiveInt] = {}
    alpha_pattern: dict[str, FiniteFloat] = {}


def _checked_config(
    path: Path, part: str, config: dict[str, Any], tensors: Mapping[str, Tensor]
) -> dict[str, Any]:
    """A network's configuration as it was stored, of which peft will make layers of the size that it asks for.

    Raises:
        UserError: a value is of another type, or a rank is larger than that of any tensor.
    """
    if is_lokr_config(config):
        targets = checked(config, _StoredLokr, f"{path}: {part}").target_modules
    else:
        stored = checked(config, _StoredConfig, f"{path}: {part}")
        _check_ranks(path, part, stored, tensors)
        targets = stored.target_modules
    if isinstance(targets, list) and len(targets) > MAX_PATTERNS:
        raise UserError(
            f"{path}: {part} names {len(targets):,} layers",
            f"at most {MAX_PATTERNS:,} are read",
        )
    return config


def _check_ranks(path: Path, part: str, stored: _StoredConfig, tensors: Mapping[str, Tensor]) -> None:
    own = [tensor for name, tensor in tensors.items() if name.startswith(f"{part}.") and "lora_A" in name]
    largest = max((tensor.shape[0] for tensor in own if tensor.ndim), default=1)
    rank = max(stored.r, *stored.rank_pattern.values()) if stored.rank_pattern else stored.r
    if rank > largest:
        raise UserError(
            f"{path}: {part} has rank {rank:,}, and its tensors have at most {largest:,}", "restore the file"
        )


def read_lora_file(
    path: Path, networks: Mapping[str, nn.Module], lora: Mapping[str, LoraNames] = SD1.lora
) -> LoraWeights:
    """A LoRA with any names, for these networks: float32, with a configuration made from its tensors.

    Args:
        path: a file, or the folder of a LoRA for peft or diffusers, of an adapter or of a run.
        networks: `ModelParts.lora_networks()`, without a LoRA in them.
        lora: the names of the model's family.

    Raises:
        UserError: there is no LoRA, it is damaged, or it is of another kind or another model.

    Warns:
        LdmWarning: a part of the file is not used.
    """
    layers: dict[str, dict[str, LoraLayer]] = {}
    changes: dict[str, Tensor] = {}
    for file in lora_files(path):
        configs = _configs(file, networks)
        found = _by_layer(file, networks, lora)
        _leave_out(file, found, configs, networks, lora)
        for (part, name), tensors in found.items():
            if name in layers.setdefault(part, {}) or f"{part}.{name}.weight" in changes:
                raise UserError(f"{path} has {part}.{name} twice", "use another file")
            layer, where = networks[part].get_submodule(name), f"{file}: {part}.{name}"
            if "diff_b" in tensors:
                changes[f"{part}.{name}.bias"] = _bias_change(where, tensors.pop("diff_b"), layer)
            weight: Tensor = layer.weight  # type: ignore[assignment]
            config = configs.get(part)
            if FULL_KINDS & tensors.keys():
                if isinstance(config, PeftLokrConfig) and "alpha" not in tensors:
                    tensors["scalar"] = torch.tensor(config.scale(name, is_text=lora[part].is_text))
                changes[f"{part}.{name}.weight"] = full_change(where, tensors, weight.shape)
            elif tensors.keys() - {"alpha"}:
                _check_matrix(where, weight)
                is_text = lora[part].is_text
                own = config if isinstance(config, PeftConfig) else None
                layers[part][name] = fit_layer(where, tensors, name, own, weight, is_text=is_text)
    return from_layers({part: own for part, own in layers.items() if own}, networks, changes)


def _bias_change(where: str, change: Tensor, layer: nn.Module) -> Tensor:
    bias = getattr(layer, "bias", None)
    if bias is None:
        raise UserError(f"{where} has no bias in this model", "is it of another model?")
    return fit_change(f"{where}.bias", change, bias.shape)


def _check_matrix(where: str, weight: Tensor) -> None:
    if weight.ndim < 2:
        raise UserError(f"{where} is a norm", "a LoRA changes linear layers and convolutions")


def _leave_out(
    file: Path,
    found: dict[tuple[str, str], dict[str, Tensor]],
    configs: Mapping[str, PeftConfig | PeftLokrConfig],
    networks: Mapping[str, nn.Module],
    lora: Mapping[str, LoraNames],
) -> None:
    """Drop the tensors that peft would not load, and say so; say as well what it would look for in vain.

    Warns:
        LdmWarning: the file's configuration and its tensors name different layers.
    """
    for part in sorted({part for part, _ in found}):
        config, is_text = configs.get(part), lora[part].is_text
        if not isinstance(config, PeftConfig):
            continue
        here = {name: config.targets(name, is_text=is_text) for name in changeable_layers(networks[part])}
        unused = [name for own, name in found if own == part and here.get(name) is False]
        missing = [name for name, is_target in here.items() if is_target and (part, name) not in found]
        for name in unused:
            del found[part, name]
        for names, what in ((unused, "leaves out"), (missing, "names, and the file does not hold")):
            if names:
                warn(f"{file}: {len(names)} layers that its configuration {what}, such as {part}.{names[0]}")


def lora_files(path: Path) -> list[Path]:
    """The safetensors files of a LoRA.

    Args:
        path: as of `read_lora_file`.

    Raises:
        UserError: there are none, or it is unclear which.
    """
    if path.suffix in PICKLES:
        raise UserError(f"{path} is a pickle", "only safetensors are read")
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise UserError(f"no LoRA {str(path)!r}", "name a .safetensors file, or the folder of one")
    if (path / "pipeline").is_dir():
        return lora_files(path / "pipeline")
    inside = (PEFT_FILE, *(f"{part}/{PEFT_FILE}" for part in lora_parts()), ADAPTER_WEIGHTS[0])
    found = [path / name for name in inside if (path / name).is_file()] or sorted(path.glob("*.safetensors"))
    if not found:
        raise UserError(f"{path} holds no LoRA", "name a .safetensors file, or the folder of one")
    if len(found) > 1 and any(file.parent == path for file in found):
        raise UserError(f"{path} holds more than one LoRA", f"name one file of it, such as {found[0].name}")
    return found


def _named(weights: LoraWeights, name: Callable[[str, str, str], str]) -> dict[str, Tensor]:
    """The tensors under `name(part, layer, kind)`."""
    found: dict[str, Tensor] = {}
    for own, tensor in weights.tensors.items():
        stem, kind = split_name(own) or (own, "")
        part, _, layer = stem.partition(".")
        found[name(part, layer, kind)] = tensor
    return found


def _write(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], dtype: torch.dtype
) -> None:
    """A safetensors file; a ModelSpec header also gets the hash of everything after the header."""
    if any(key.startswith("modelspec.") for key in metadata):
        hashes = {"modelspec.hash_sha256": f"0x{TENSORS_SHA256}", "sshs_model_hash": TENSORS_SHA256}
        metadata = {**metadata, **hashes}
    write_tensors(path, tensors, {"format": "pt", **metadata}, dtype=dtype)


def _peft_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The keys that every version of peft needs; the others have peft's defaults."""
    fixed = {"peft_type": "LORA", "task_type": None, "base_model_name_or_path": None, "inference_mode": True}
    if is_lokr_config(config):
        return {**fixed, **config}
    return {**fixed, "bias": "none", "fan_in_fan_out": False, "lora_dropout": 0.0, **config}


def _header_configs(path: Path) -> dict[str, dict[str, Any]]:
    """The networks' configurations in a file's header; empty where diffusers stored none."""
    with open_tensors(path) as file:
        text = (file.metadata() or {}).get(METADATA_KEY)
    try:
        metadata = parse_json(text or "{}")
        configs: dict[str, dict[str, Any]] = {}
        for name, value in metadata.items():
            part, _, key = name.partition(".")
            configs.setdefault(part, {})[key] = value
    except (ValueError, AttributeError) as error:
        raise UserError(
            f"{path}: {METADATA_KEY} in its header is broken ({error})", "restore the file"
        ) from None
    return configs


def _configs(file: Path, networks: Mapping[str, nn.Module]) -> dict[str, PeftConfig | PeftLokrConfig]:
    """The networks' configurations, from the header or the file beside the tensors.

    Raises:
        UserError: they are broken, not of a LoRA, or have a key that is not understood.
    """
    with open_tensors(file) as opened:
        check_network_args(str(file), opened.metadata() or {})
    layers = {part: changeable_layers(network) for part, network in networks.items()}
    if file.name == PEFT_FILE:
        beside, every = file.parent / PEFT_CONFIG, [name for own in layers.values() for name in own]
        return dict.fromkeys(lora_parts(), read_peft_config(str(beside), read_object(beside), every))
    return {
        part: read_peft_config(f"{file}: {METADATA_KEY} of {part!r}", config, layers.get(part, []))
        for part, config in _header_configs(file).items()
    }


def _by_layer(
    file: Path, networks: Mapping[str, nn.Module], lora: Mapping[str, LoraNames]
) -> dict[tuple[str, str], dict[str, Tensor]]:
    """The file's tensors in float32: {(network, layer): {kind: tensor}}.

    Warns:
        LdmWarning: the file also holds embeddings, which are not read.
    """
    tensors = read_tensors(file)
    if words := bundled_tokens(tensors):
        warn(f"{file} also holds embeddings, which are not read: {', '.join(words)}")
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(BUNDLED)}
    own = file.parent.name if file.name == PEFT_FILE else ""  # peft's names have no network in them
    parts = [own] if own in networks else list(networks)
    known = layer_names({part: _named_layers(networks[part]) for part in parts}, lora)
    split = {name: split_name(name) or ("", "") for name in tensors}
    unknown = [name for name, (stem, _) in split.items() if stem not in known]
    if unknown and (kind := foreign_kind(unknown, lora)):
        raise UserError(f"{file} is {kind}", "LoRA, DoRA, LoHa and LoKr of this model's family are read")
    for name in unknown:
        if not split[name][1]:
            raise UserError(f"{file}: {name} does not belong to a LoRA", "name another file")
        raise UserError(f"{file}: {name} does not match a layer of this model", "is it of another model?")
    found: dict[tuple[str, str], dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        stem, kind = split[name]
        layer = found.setdefault(known[stem], {})
        if kind in layer:
            raise UserError(f"{file}: {name} is also stored under another name", "use another file")
        layer[kind] = tensor.float()
    if not found:
        raise UserError(f"{file} has no tensors", "name another file")
    return found


def _named_layers(network: nn.Module) -> list[str]:
    """The layers that a file may change: linear layers, convolutions and norms."""
    kinds = nn.Linear | nn.Conv2d | nn.GroupNorm | nn.LayerNorm
    return [name for name, module in network.named_modules() if isinstance(module, kinds)]

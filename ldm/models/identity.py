"""What a model is: a hash of each part that decides its images, and one hash over all of them.

A model is more than its safetensors. The same weights make other images with another noise schedule, activation,
scaling factor or vocabulary. So each component's hash covers its weights' files and its effective configuration: the
settings of the loaded network, without those that have their default value. A config.json that is written anew, in
another order or with defaults spelled out, is the same model.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from inspect import signature
from pathlib import Path
from typing import Any

from torch import nn

from ldm.models.loading.folder import component_weights, weights_hash
from ldm.models.parts import ModelParts

SCHEDULER, DEFAULTS, ADAPTER = "scheduler", "defaults", "adapter"
LOW_RESOLUTION, SETTINGS = "low_res_scheduler", "settings"
"""The parts of an identity besides the networks and tokenizers, which have the names of their components."""

NOT_DECISIVE = frozenset({"transformers_version", "dtype", "torch_dtype", "architectures"})
"""Settings that affect no output; those that begin with `_` do not either."""

_TOKENIZER_STATE = ("version", "truncation", "padding")
"""Parts of a tokenizer's file that each call sets anew, or that say nothing about ids."""


@dataclass(frozen=True)
class Identity:
    """A hash of each part of a model, 64 hex digits.

    Attributes:
        weights_hash: `ldm.models.loading.folder.weights_hash`, all that records of older versions have.
        parts: by the name of the component; also "scheduler", "defaults", and for models that have them
            "low_res_scheduler", "settings" (of `model_index.json`) and "adapter".
    """

    weights_hash: str
    parts: Mapping[str, str]

    @cached_property
    def hash(self) -> str:
        """One hash over all parts."""
        return _hash_of(dict(self.parts))

    def without(self, *names: str) -> dict[str, str]:
        """The hashes of all parts but these."""
        return {name: value for name, value in self.parts.items() if name not in names}

    @property
    def image_parts(self) -> dict[str, str]:
        """What an image depends on. Its record holds every setting, so the model's defaults do not count."""
        return self.without(DEFAULTS)

    @property
    def base_parts(self) -> dict[str, str]:
        """What an adapter for this model depends on: it has a noise schedule and defaults of its own."""
        return self.without(DEFAULTS, SCHEDULER)


def identity_of(parts: ModelParts, base: Path, adapters: Sequence[Path] = ()) -> Identity:
    """The identity of a loaded model.

    Args:
        base: the folder or file that its weights were loaded from.
        adapters: the folders of the adapters that were applied to them, in this order.
    """
    files = component_weights(base)
    found = {name: _hash_of([files[name], network_settings(one)]) for name, one in parts.networks().items()}
    components = parts.components()
    for name in parts.family.tokenizers:
        found[name] = _hash_of(tokenizer_contents(components[name]))
    found[SCHEDULER] = _hash_of(scheduler_settings(parts.scheduler_config))
    if parts.low_resolution is not None:
        found[LOW_RESOLUTION] = _hash_of(parts.low_resolution.model_dump())
    if parts.settings:
        found[SETTINGS] = _hash_of(parts.settings)
    found[DEFAULTS] = _hash_of(parts.defaults.model_defaults())
    if adapters:
        found[ADAPTER] = _hash_of([weights_hash(folder) for folder in adapters])
    return Identity(weights_hash(adapters[-1] if adapters else base), found)


def changed_parts(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """The names of the parts that differ, in alphabetical order."""
    return sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))


def network_settings(network: nn.Module) -> dict[str, Any]:
    """The settings of a network of diffusers or transformers that differ from its class's defaults.

    Neither a later version of the libraries, which adds settings, nor a file that spells out the defaults changes them.
    """
    config: Any = network.config
    if hasattr(config, "to_dict"):
        given, usual = config.to_dict(), type(config)().to_dict()
        given = {key: value for key, value in given.items() if key in usual}
    else:
        made_with = signature(type(network).__init__).parameters
        given, usual = dict(config), {name: each.default for name, each in made_with.items()}
    kept = {
        key: plain(value)
        for key, value in given.items()
        if not key.startswith("_") and key not in NOT_DECISIVE
    }
    return {key: value for key, value in kept.items() if value != plain(usual.get(key))}


def tokenizer_contents(tokenizer: Any) -> dict[str, Any]:
    """All that decides the token ids of a prompt: the vocabulary, the rules, the special tokens and the context.

    Values that are off are left out, as later versions of the library write more of them; a merge is a pair.
    """
    contents: dict[str, Any] = _without_empty(json.loads(tokenizer.backend_tokenizer.to_str()))
    for key in _TOKENIZER_STATE:
        contents.pop(key, None)
    model = contents.get("model", {})
    if "merges" in model:
        model["merges"] = [m.split(" ") if isinstance(m, str) else m for m in model["merges"]]
    special = ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "model_max_length")
    return contents | {name: plain(getattr(tokenizer, name)) for name in special}


def scheduler_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a scheduler's config that were given.

    A default spelled out is not the same as none: another sampler takes the setting over, and else has its own default.
    """
    unsaid = set(config.get("_use_default_values", ()))
    return {
        key: plain(value)
        for key, value in config.items()
        if key not in unsaid and (key == "_class_name" or not key.startswith("_"))
    }


def plain(value: Any) -> Any:
    """A setting as JSON would hold it; 1000.0 is 1000, and a tuple is a list."""
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, str) or not isinstance(value, Iterable):
        return int(value) if isinstance(value, float) and value.is_integer() else value
    return [plain(each) for each in value]


def _without_empty(value: Any) -> Any:
    if isinstance(value, dict):
        kept = {key: _without_empty(each) for key, each in value.items()}
        # an id of 0 is not empty
        return {key: v for key, v in kept.items() if not (v is None or v is False or v in ("", [], {}))}
    return [_without_empty(each) for each in value] if isinstance(value, list) else value


def _hash_of(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()

"""peft's configuration of a LoRA: which keys are understood, and what they say about each layer.

peft decides which layers a configuration names and which pattern a layer matches: its own functions are called. A key
that is not listed here, and that is not switched off, is refused by name, because it may change the base model or the
formula.
"""

import math
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ldm.errors import UserError
from ldm.models.adapters.lora_names import TEXT_MODEL
from ldm.models.adapters.patterns import FORMS, check_patterns

READ = (
    "r", "lora_alpha", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "rank_pattern",
    "alpha_pattern", "use_rslora", "use_dora",
)  # fmt: skip
"""The keys that decide what a LoRA changes and by how much."""

WITHOUT_EFFECT = (
    "peft_type", "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode",
    "lora_dropout", "fan_in_fan_out", "loftq_config", "eva_config", "corda_config", "lora_ga_config",
    "megatron_config", "megatron_core", "runtime_config", "qalora_group_size", "ensure_weight_tying",
)  # fmt: skip
"""Keys of training, of bookkeeping, and of features that another key switches on. peft ignores `fan_in_fan_out` for the
layers that these models have."""

LOKR_READ = ("r", "alpha", "rank_pattern", "alpha_pattern")
"""The keys that decide by how much a LoKr changes its layers; the shapes of its factors tell the rest."""

LOKR_WITHOUT_EFFECT = (
    "target_modules", "decompose_both", "decompose_factor", "use_effective_conv2d", "init_weights", "rank_dropout",
    "module_dropout", "rank_dropout_scale",
)  # fmt: skip

KEEPS_BASE = (True, False, None, "gaussian", "eva", "orthogonal", "mica")
"""Values of `init_lora_weights` that leave the base model as it is."""

CHANGES_BASE = ("pissa", "olora")
"""Values of `init_lora_weights` that first take a part out of the base model's weights, always the same one."""

PLAIN = re.compile(r"[\w.]+")
Value = TypeVar("Value")
Pattern = Mapping[str, Value]


@dataclass(frozen=True)
class PeftConfig:
    """The configuration of one network's LoRA in a file.

    Attributes:
        where: the file, for messages.
        lora: the `peft.LoraConfig` of the keys in `READ`.
        excluded: a `peft.LoraConfig` that targets the excluded layers, or None.
        start: what was taken out of the base model before training, a value of `CHANGES_BASE`, or None.
    """

    where: str
    lora: Any
    excluded: Any
    start: str | None

    def targets(self, layer: str, *, is_text: bool) -> bool | None:
        """Whether peft would apply the LoRA to a layer; None where the configuration does not say."""
        if self.lora.target_modules in (None, "all-linear"):
            return None
        from peft.tuners.tuners_utils import check_target_module_exists

        def named(config: Any) -> bool:
            return any(check_target_module_exists(config, name) for name in _names(layer, is_text))

        return named(self.lora) and not (self.excluded is not None and named(self.excluded))

    def rank(self, layer: str, *, is_text: bool) -> int:
        """The rank of a layer's change."""
        return int(_value(self.lora.rank_pattern, layer, self.lora.r, is_text))

    def alpha(self, layer: str, *, is_text: bool) -> float:
        """A layer's alpha, which is divided by the rank; with rslora, times the root of the rank."""
        alpha = float(_value(self.lora.alpha_pattern, layer, self.lora.lora_alpha, is_text))
        return alpha * (math.sqrt(self.rank(layer, is_text=is_text)) if self.lora.use_rslora else 1)


@dataclass(frozen=True)
class PeftLokrConfig:
    """The configuration of one network's LoKr in a file: what its changes are multiplied by."""

    r: int
    alpha: float
    rank_pattern: Pattern[float]
    alpha_pattern: Pattern[float]

    def scale(self, layer: str, *, is_text: bool) -> float:
        """alpha / rank of a layer. peft multiplies with it even where both factors are whole."""
        alpha = _value(self.alpha_pattern, layer, self.alpha, is_text)
        return alpha / _value(self.rank_pattern, layer, self.r, is_text)


def _value(pattern: Pattern[float], layer: str, default: float, is_text: bool) -> float:
    for name in _names(layer, is_text):
        if (found := pattern_value(pattern, name, None)) is not None:
            return found
    return default


def pattern_value(pattern: Pattern[Value], layer: str, default: Value) -> Value:
    """A layer's value in a `rank_pattern` or an `alpha_pattern`, as peft finds it: the first key that matches.

    Keys that are plain names are first compared by their last word, because there may be a key for each of hundreds of
    layers.
    """
    from peft.utils.other import get_pattern_key

    keys = [key for key in pattern if not PLAIN.fullmatch(key) or layer.endswith(_last_word(key))]
    return pattern.get(get_pattern_key(keys, layer), default) if keys else default


def _last_word(key: str) -> str:
    return key.rpartition(".")[2]


def read_peft_config(
    where: str, given: Mapping[str, Any], layers: Collection[str]
) -> PeftConfig | PeftLokrConfig:
    """The configuration of one network.

    Args:
        where: the file, for messages.
        given: as in `adapter_config.json`.
        layers: the names of the model's layers, which its regular expressions are matched with.

    Raises:
        UserError: it is not of a LoRA or LoKr, has a key that is not understood, a value of the wrong type, or a
            regular expression that is broken or takes too long.
    """
    from peft import LoraConfig

    if (kind := given.get("peft_type", "LORA")) == "LOKR":
        return _read_lokr(where, given, layers)
    if kind != "LORA":
        raise UserError(f"{where} is of peft's type {kind}", "LoRA, DoRA and LoKr are read")
    start = _check_keys(where, given)
    known = {key: given[key] for key in READ if given.get(key) is not None}
    _check_types(where, known)
    check_expressions(where, known, layers)
    excluded = known.pop("exclude_modules", None)
    try:
        lora = LoraConfig(**known)
        return PeftConfig(where, lora, LoraConfig(target_modules=excluded) if excluded else None, start)
    except (ValueError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{where}: peft refuses the configuration ({reason})", "restore the file") from None


def _read_lokr(where: str, given: Mapping[str, Any], layers: Collection[str]) -> PeftLokrConfig:
    _refuse_others(where, given, LOKR_READ, LOKR_WITHOUT_EFFECT)
    known = {key: given[key] for key in LOKR_READ if given.get(key) is not None}
    _check_types(where, known)
    check_expressions(where, known, layers)
    from peft import LoKrConfig

    default = LoKrConfig()
    for layer, rank in (known.get("rank_pattern") or {}).items():
        if rank <= 0:
            raise UserError(f"{where}: rank_pattern gives {layer} a rank of {rank}", "restore the file")
    return PeftLokrConfig(**{key: known.get(key, getattr(default, key)) for key in LOKR_READ})


def _check_keys(where: str, given: Mapping[str, Any]) -> str | None:
    """Refuse what is not understood; returns what was taken out of the base model before training."""
    start = given.get("init_lora_weights", True)
    start = start.lower() if isinstance(start, str) else start
    if start not in (*KEEPS_BASE, *CHANGES_BASE):
        raise UserError(
            f"{where}: init_lora_weights is {start!r}, and the file does not tell how that changed the base model",
            "convert it to a plain LoRA with peft's path_initial_model_for_weight_conversion",
        )
    _refuse_others(where, given, READ, ("init_lora_weights",))
    if start in CHANGES_BASE and given.get("use_dora"):
        raise UserError(f"{where} has use_dora with init_lora_weights {start!r}", "one of the two is read")
    return start if start in CHANGES_BASE else None


def _refuse_others(
    where: str, given: Mapping[str, Any], read: Collection[str], ignored: Collection[str]
) -> None:
    """Refuse a key that is set and not understood."""
    for key, value in given.items():
        is_on = value not in (None, False, "", "none") and value != {} and value != []
        if is_on and key not in (*read, *ignored, *WITHOUT_EFFECT):
            raise UserError(
                f"{where}: {key} is {str(value)[:80]!r}",
                f"this key is not supported: {', '.join(read)} are read",
            )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_names(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(one, str) for one in value))


def _is_pattern(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_is_number, value.values()))


TYPES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "r": (lambda value: type(value) is int and value > 0, "a positive whole number"),
    "lora_alpha": (_is_number, "a number"),
    "alpha": (_is_number, "a number"),
    "target_modules": (_is_names, "a name, or a list of names"),
    "exclude_modules": (_is_names, "a name, or a list of names"),
    "layers_to_transform": (
        lambda value: type(value) is int or (isinstance(value, list) and all(type(one) is int for one in value)),
        "a number, or a list of numbers",
    ),
    "layers_pattern": (
        lambda value: _is_names(value) and all(map(PLAIN.fullmatch, [value] if isinstance(value, str) else value)),
        "a name, or a list of names",
    ),
    "rank_pattern": (_is_pattern, "an object of numbers"),
    "alpha_pattern": (_is_pattern, "an object of numbers"),
    "use_rslora": (lambda value: isinstance(value, bool), "true or false"),
    "use_dora": (lambda value: isinstance(value, bool), "true or false"),
}  # fmt: skip


def _check_types(where: str, known: Mapping[str, Any]) -> None:
    for key, value in known.items():
        is_right, wanted = TYPES[key]
        if not is_right(value):
            raise UserError(f"{where}: {key} is {str(value)[:80]!r}", f"it must be {wanted}")


def check_expressions(where: str, known: Mapping[str, Any], layers: Collection[str]) -> None:
    """Refuse regular expressions that peft could not match; a list of targets holds plain names."""
    names = dict.fromkeys(name for layer in layers for name in _names(layer, is_text=True))
    for key in FORMS:
        value = known.get(key)
        if value and not isinstance(value, list):
            check_patterns(where, key, [value] if isinstance(value, str) else list(value), names)


def _names(layer: str, is_text: bool) -> tuple[str, ...]:
    """The names that peft may have known a layer by: before transformers 5, those of a text encoder were longer."""
    return (layer, TEXT_MODEL + layer.removeprefix(TEXT_MODEL)) if is_text else (layer,)


@torch.no_grad()
def taken_out(start: str, weight: Tensor, rank: int, alpha: float) -> tuple[Tensor, Tensor]:
    """What peft takes out of a linear layer's weight [out, in] before training: A [rank, in] and B [out, rank].

    peft does it again whenever such a LoRA is loaded, to the same result.

    Raises:
        UserError: peft cannot do it for a layer of this shape.
    """
    from peft import LoraConfig, inject_adapter_in_model

    if weight.ndim != 2:
        raise UserError(f"init_lora_weights {start!r} of a convolution", "peft does not support it")
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight.copy_(weight)
    network = nn.ModuleDict({"layer": layer})
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=["layer"], init_lora_weights=start)
    with torch.random.fork_rng(devices=[]):  # peft's layers draw their weights before they are replaced
        inject_adapter_in_model(config, network)
    injected: Any = network["layer"]
    return tuple(part["default"].weight.detach().clone() for part in (injected.lora_A, injected.lora_B))

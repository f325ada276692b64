"""A LoRA layer by layer, as in files, and with one configuration per network, as in peft."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ldm.errors import UserError
from ldm.models.adapters.lora import TARGETS, LoraWeights, changeable_layers
from ldm.models.adapters.lora_names import peft_name

Number = TypeVar("Number", int, float)
Layers = Mapping[str, Mapping[str, "LoraLayer"]]
"""{network: {layer: change}}."""


@dataclass(frozen=True)
class LoraLayer:
    """The change of one layer: `alpha / rank` times up times down, and with DoRA a magnitude for each output.

    Attributes:
        down: A, [rank, in] or [rank, in, k, k].
        up: B, [out, rank] or [out, rank, 1, 1].
        magnitude: [out] of a linear layer, [1, out, 1, 1] of a convolution.
    """

    down: Tensor
    up: Tensor
    alpha: float
    magnitude: Tensor | None = None

    @property
    def rank(self) -> int:
        return int(self.down.shape[0])

    def tensors(self) -> dict[str, Tensor]:
        """The tensors by the kinds of `ldm.models.adapters.lora_names.ENDS`, without alpha."""
        found = {"down": self.down, "up": self.up}
        return found if self.magnitude is None else {**found, "magnitude": self.magnitude}


def to_layers(weights: LoraWeights) -> dict[str, dict[str, LoraLayer]]:
    """The layers of a LoRA, each with its own alpha."""
    found: dict[str, dict[str, LoraLayer]] = {}
    for part, config in weights.configs.items():
        end = ".lora_A.weight"
        names = [name for name in weights.tensors if name.startswith(f"{part}.") and name.endswith(end)]
        layers = [name.removeprefix(f"{part}.").removesuffix(end) for name in names]
        found[part] = {layer: _layer(weights, part, layer, config) for layer in layers}
    return found


def _layer(weights: LoraWeights, part: str, layer: str, config: Mapping[str, Any]) -> LoraLayer:
    down, up = (weights.tensors[f"{part}.{peft_name(layer, kind)}"] for kind in ("down", "up"))
    magnitude = weights.tensors.get(f"{part}.{peft_name(layer, 'magnitude')}")
    return LoraLayer(down, up, layer_alpha(config, layer), magnitude)


def layer_alpha(config: Mapping[str, Any], layer: str) -> float:
    """A layer's alpha in peft's configuration. A key of `alpha_pattern` is a layer's name or the end of one."""
    for key, value in (config.get("alpha_pattern") or {}).items():
        plain = key.removeprefix("^")
        if layer == plain or layer.endswith(f".{plain}"):
            return float(value)
    return float(config["lora_alpha"])


def from_layers(layers: Layers, networks: Mapping[str, nn.Module]) -> LoraWeights:
    """The LoRA of these layers; the most common rank and alpha are the configuration's, others go into its patterns.

    Raises:
        UserError: some layers of a network have DoRA and some do not, which peft does not support.
    """
    tensors: dict[str, Tensor] = {}
    configs: dict[str, dict[str, Any]] = {}
    for part, own in layers.items():
        if len({layer.magnitude is None for layer in own.values()}) > 1:
            raise UserError(
                f"the LoRA has magnitudes (DoRA) for some layers of the {part} only", "use another"
            )
        configs[part] = _config(networks[part], own)
        for name, layer in own.items():
            tensors |= {f"{part}.{peft_name(name, kind)}": t for kind, t in layer.tensors().items()}
    return LoraWeights(tensors, configs)


def one_alpha(layers: Mapping[str, LoraLayer]) -> dict[str, LoraLayer]:
    """The same changes, all with the most common alpha; the `up` of other layers is scaled to make up for it."""
    alpha = _most_common(layer.alpha for layer in layers.values())
    return {
        name: layer
        if layer.alpha == alpha
        else replace(layer, up=layer.up * (layer.alpha / alpha), alpha=alpha)
        for name, layer in layers.items()
    }


def _config(network: nn.Module, layers: Mapping[str, LoraLayer]) -> dict[str, Any]:
    ranks = {name: layers[name].rank for name in sorted(layers)}
    alphas = {name: layers[name].alpha for name in sorted(layers)}
    rank, alpha = _most_common(ranks.values()), _most_common(alphas.values())
    return {
        "r": rank,
        "lora_alpha": alpha,
        "target_modules": short_targets(changeable_layers(network), layers),
        "use_dora": any(layer.magnitude is not None for layer in layers.values()),
        "rank_pattern": {name: value for name, value in ranks.items() if value != rank},
        "alpha_pattern": {name: value for name, value in alphas.items() if value != alpha},
    }


def _most_common(values: Iterable[Number]) -> Number:
    """The most frequent value; among equals, the first."""
    return Counter(values).most_common(1)[0][0]


def short_targets(known: Iterable[str], changed: Iterable[str]) -> list[str]:
    """The changed layers: a suffix where every layer with that suffix is changed, otherwise the full name."""
    changed, known = set(changed), list(known)
    short = []
    for end in TARGETS["all"]:
        named = {name for name in known if name == end or name.endswith(f".{end}")}
        if named and named <= changed:
            short.append(end)
            changed -= named
    return sorted([*short, *changed])


def fit_layer(
    where: str, tensors: Mapping[str, Tensor], name: str, config: Mapping[str, Any] | None, shape: torch.Size
) -> LoraLayer:
    """One layer's change from a file, in peft's shapes.

    Args:
        where: the name in an error.
        tensors: by the kinds of `ldm.models.adapters.lora_names.ENDS`.
        name: of the layer.
        config: peft's configuration of the network, if the file has one.
        shape: of the layer's weight, [out, in] or [out, in, k, k].

    Raises:
        UserError: a tensor is missing, does not fit the layer or cannot be read.
    """
    for kind in ("down", "up"):
        if kind not in tensors or tensors[kind].ndim < 2:
            raise UserError(f"{where} has no {kind} weights", "the file is incomplete")
    rank, ones = len(tensors["down"]), [1] * (len(shape) - 2)
    down = _shaped(where, tensors["down"], [rank, *shape[1:]])
    up = _shaped(where, tensors["up"], [shape[0], rank, *ones])
    return LoraLayer(down, up, _alpha(where, tensors, name, config), _magnitude(where, tensors, shape))


def _shaped(where: str, tensor: Tensor, shape: list[int]) -> Tensor:
    """A tensor in the model's shape: some programs write linear layers as 1x1 convolutions, or the reverse."""
    if len(tensor) != shape[0] or tensor.numel() != math.prod(shape):
        raise UserError(f"{where} has {list(tensor.shape)}, the model {shape}", "is it of another model?")
    return tensor.reshape(shape)


def _alpha(where: str, tensors: Mapping[str, Tensor], name: str, config: Mapping[str, Any] | None) -> float:
    """A layer's alpha: kohya stores it beside the layer, peft and diffusers in the configuration."""
    rank = len(tensors["down"])
    try:
        if "alpha" in tensors:
            alpha = tensors["alpha"].item()
        elif config:
            alpha = layer_alpha(config, name) * (math.sqrt(rank) if config.get("use_rslora") else 1)
        else:
            alpha = rank
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError):
        raise UserError(f"{where}: its alpha cannot be read", "use another file") from None
    if not math.isfinite(alpha) or not alpha:
        raise UserError(f"{where} has alpha {alpha}", "use another file")
    return float(alpha)


def _magnitude(where: str, tensors: Mapping[str, Tensor], shape: torch.Size) -> Tensor | None:
    """A DoRA's magnitudes of the outputs; those of the inputs, as kohya's programs may write, are refused."""
    found = tensors.get("magnitude", tensors.get("dora_scale"))
    if found is None:
        return None
    if found.numel() != shape[0] or ("dora_scale" in tensors and len(found) != shape[0]):
        raise UserError(
            f"{where} has DoRA magnitudes {list(found.shape)}",
            f"only those of the {shape[0]} outputs are read",
        )
    return found.reshape(-1) if len(shape) == 2 else found.reshape(1, -1, 1, 1)

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
from ldm.models.adapters.lora_names import peft_name, split_name
from ldm.models.adapters.peft_config import PeftConfig, pattern_value, taken_out

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
    """A layer's alpha in the configuration of a `LoraWeights`."""
    return float(pattern_value(config.get("alpha_pattern") or {}, layer, config["lora_alpha"]))


def lokr_layers(weights: LoraWeights, part: str) -> dict[str, dict[str, Tensor]]:
    """The factors of each layer of a network's LoKr: {layer: {kind: tensor}}."""
    found: dict[str, dict[str, Tensor]] = {}
    for name, tensor in weights.tensors.items():
        stem, kind = split_name(name) or ("", "")
        own, _, layer = stem.partition(".")
        if own == part:
            found.setdefault(layer, {})[kind] = tensor
    return found


def lokr_scale(config: Mapping[str, Any], layer: str) -> tuple[float, int]:
    """A layer's alpha and rank in the configuration of a LoKr."""
    alpha = pattern_value(config.get("alpha_pattern") or {}, layer, config["alpha"])
    return float(alpha), int(pattern_value(config.get("rank_pattern") or {}, layer, config["r"]))


def from_layers(
    layers: Layers, networks: Mapping[str, nn.Module], changes: Mapping[str, Tensor] | None = None
) -> LoraWeights:
    """The LoRA of these layers; the most common rank and alpha are the configuration's, others go into its patterns.

    Args:
        changes: of whole weights and biases, as of `LoraWeights`.

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
    return LoraWeights(tensors, configs, dict(changes or {}))


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
    where: str,
    tensors: Mapping[str, Tensor],
    name: str,
    config: PeftConfig | None,
    weight: Tensor,
    *,
    is_text: bool = False,
) -> LoraLayer:
    """One layer's change from a file, in peft's shapes.

    Args:
        where: the name in an error.
        tensors: by the kinds of `ldm.models.adapters.lora_names.ENDS`.
        name: of the layer.
        config: peft's configuration of the network, if the file has one.
        weight: of the layer, [out, in] or [out, in, k, k].
        is_text: whether it is a layer of a text encoder.

    Raises:
        UserError: a tensor is missing, does not fit the layer or cannot be read.
    """
    for kind in ("down", "up"):
        if kind not in tensors or tensors[kind].ndim < 2:
            raise UserError(f"{where} has no {kind} weights", "the file is incomplete")
    tensors = _without_core(where, tensors)
    shape, rank = weight.shape, len(tensors["down"])
    if config and (wanted := config.rank(name, is_text=is_text)) != rank:
        raise UserError(f"{where} has rank {rank}, and its configuration {wanted}", "restore the file")
    down = _shaped(where, tensors["down"], [rank, *shape[1:]])
    up = _shaped(where, tensors["up"], [shape[0], rank, *[1] * (len(shape) - 2)])
    alpha = _alpha(where, tensors, config.alpha(name, is_text=is_text) if config else float(rank))
    layer = LoraLayer(down, up, alpha, _magnitude(where, tensors, shape))
    if config and bool(config.lora.use_dora) != (layer.magnitude is not None):
        has = "no magnitudes" if layer.magnitude is None else "magnitudes"
        raise UserError(f"{where} has {has}, and use_dora is {config.lora.use_dora}", "restore the file")
    return _on_whole_base(layer, weight, config.start) if config and config.start else layer


def _without_core(where: str, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Two factors in place of three (a LoCon with Tucker decomposition: up mid down); a scalar goes into up."""
    found = dict(tensors)
    if (core := found.pop("mid", None)) is not None:
        if core.ndim != 4 or found["down"].shape[0] != core.shape[1]:
            raise UserError(f"{where} has a middle part {list(core.shape)}", "restore the file")
        found["down"] = torch.einsum("rskl,si->rikl", core, found["down"].flatten(1))
    if (scalar := found.pop("scalar", None)) is not None:
        found["up"] = found["up"] * scalar.reshape(-1)[0]
    return found


def _on_whole_base(layer: LoraLayer, weight: Tensor, start: str) -> LoraLayer:
    """The same change for the whole base weight: what peft takes out of it before training is subtracted again."""
    down, up = taken_out(start, weight, layer.rank, layer.alpha)
    both = LoraLayer(torch.cat([layer.down, down]), torch.cat([layer.up, -up], dim=1), layer.alpha)
    return replace(both, alpha=layer.alpha * both.rank / layer.rank)


def _shaped(where: str, tensor: Tensor, shape: list[int]) -> Tensor:
    """A tensor in the model's shape: some programs write linear layers as 1x1 convolutions, or the reverse."""
    if len(tensor) != shape[0] or tensor.numel() != math.prod(shape):
        raise UserError(f"{where} has {list(tensor.shape)}, the model {shape}", "is it of another model?")
    return tensor.reshape(shape)


def _alpha(where: str, tensors: Mapping[str, Tensor], otherwise: float) -> float:
    """A layer's alpha: kohya stores it beside the layer, peft and diffusers in the configuration."""
    try:
        alpha = float(tensors["alpha"].item()) if "alpha" in tensors else otherwise
    except RuntimeError:
        raise UserError(f"{where}: its alpha cannot be read", "use another file") from None
    if not math.isfinite(alpha) or not alpha:
        raise UserError(f"{where} has alpha {alpha:g}", "use another file")
    return alpha


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

"""LoKr (Yeh et al. 2024) with peft: changes of layers that are Kronecker products, beside frozen weights.

A changed layer computes W x + alpha/rank kron(w1, w2) x, with w1 [a, b] and w2 [c, d], where W has a c outputs and b d
inputs. Of a convolution, w2 is [c, d, k, k]. A large w2 is itself a product of w2_a [c, rank] and w2_b [rank, d].

peft decides the shapes, names the factors and adds the product to the weights. Its forward is replaced: in training it
draws from the global generator, and it multiplies with the whole product, which is as large as W.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar

import torch
from peft import LoKrConfig
from peft.tuners.lokr import Conv2d, Linear, LoKrModel
from torch import Tensor, nn
from torch.nn import functional

from ldm.models.dropout import KeyedDropout

UP = ("lokr_w2", "lokr_w2_b")
"""The factors that start at zero, so that an untrained LoKr changes nothing."""


class LokrLinear(Linear):  # type: ignore[misc]
    """A linear layer and its change."""

    dropout: nn.Module

    def forward(self, values: Tensor) -> Tensor:
        """[..., b d] -> [..., a c]."""
        return _changed(self, values)

    def change(self, values: Tensor) -> Tensor:
        """kron(w1, w2) x without the product: x as a matrix X [b, d], and w1 X w2^T as a vector."""
        one, two = _factors(self)
        values = self.dropout(values).to(one.dtype)
        blocks = values.reshape(*values.shape[:-1], one.shape[1], two.shape[1])
        return functional.linear(torch.matmul(one, blocks), two).flatten(-2)


class LokrConv2d(Conv2d):  # type: ignore[misc]
    """A convolution and its change."""

    dropout: nn.Module

    def forward(self, values: Tensor) -> Tensor:
        """[B, b d, h, w] -> [B, a c, h', w']."""
        return _changed(self, values)

    def change(self, values: Tensor) -> Tensor:
        """The same: w1 mixes b groups of channels, and w2 convolves each of the a groups that result."""
        one, two = _factors(self)
        base = self.get_base_layer()
        two = two.view(len(two), -1, *base.kernel_size)
        blocks = self.dropout(values).to(one.dtype).reshape(len(values), one.shape[1], -1)
        groups = torch.matmul(one, blocks).reshape(-1, two.shape[1], *values.shape[2:])
        changes = functional.conv2d(groups, two, None, base.stride, base.padding, base.dilation)
        return changes.reshape(len(values), -1, *changes.shape[2:])


class LokrModel(LoKrModel):  # type: ignore[misc]
    """peft's model with these layers; making one changes the network in place."""

    layers_mapping: ClassVar[dict[type[nn.Module], type[nn.Module]]] = {
        nn.Linear: LokrLinear,
        nn.Conv2d: LokrConv2d,
    }


def inject(network: nn.Module, config: Mapping[str, Any], name: str, dropout: float) -> None:
    """Put a LoKr with undefined weights into a network.

    Args:
        config: with the keys of `ldm.models.adapters.lora.LOKR_KEYS`.
        name: peft's name of the adapter.
        dropout: of the inputs of each change.

    Raises:
        ValueError, TypeError: peft refuses the configuration.
    """
    given = {key: value for key, value in config.items() if key != "peft_type"}
    LokrModel(network, LoKrConfig(**given), name)
    for layer_name, layer in layers(network):
        layer.dropout = KeyedDropout(dropout, layer_name) if dropout else nn.Identity()


def layers(network: nn.Module) -> Iterator[tuple[str, Any]]:
    """The changed layers by name."""
    for name, module in network.named_modules():
        if isinstance(module, LokrLinear | LokrConv2d):
            yield name, module


@torch.no_grad()
def draw_start(network: nn.Module, generator: Callable[[str], torch.Generator]) -> None:
    """Initialise each factor as `nn.Linear` is, and `UP` with zeros, as LyCORIS does.

    Args:
        generator: of a factor, by its name in the network.
    """
    for name, layer in layers(network):
        for kind in layer.adapter_layer_names:
            for factor in getattr(layer, kind).values():
                if kind in UP:
                    factor.zero_()
                    continue
                start = torch.empty(factor.shape)
                nn.init.kaiming_uniform_(start, a=5**0.5, generator=generator(f"{name}.{kind}"))
                factor.copy_(start)


def _changed(layer: Any, values: Tensor) -> Tensor:
    """A layer's output with its change."""
    output: Tensor = layer.base_layer(values)
    if layer.disable_adapters or layer.merged:
        return output
    (name,) = layer.active_adapters
    changed: Tensor = output + layer.change(values) * layer.scaling[name]
    return changed.to(output.dtype)


def _factors(layer: Any) -> tuple[Tensor, Tensor]:
    """w1 and w2 of the active adapter; the w2 of a convolution may be flat, [c, d k k]."""
    (name,) = layer.active_adapters

    def factor(kind: str) -> Tensor:
        whole: Mapping[str, Tensor] = getattr(layer, kind)
        if name in whole:
            return whole[name]
        return torch.matmul(getattr(layer, f"{kind}_a")[name], getattr(layer, f"{kind}_b")[name])

    return factor("lokr_w1"), factor("lokr_w2")

"""Dropout whose masks depend only on the sample: resuming, several processes and micro-batches change nothing."""

import torch
from torch import Tensor, nn

from ldm.noise import key_to_seed

BITS = 53


class KeyedDropout(nn.Module):
    """Dropout of [R, ...], R a multiple of the B samples: a row's mask is a function of its sample's key and the layer.

    `torch.nn.Dropout` draws from one shared stream, so its masks depend on rank, micro-batch and history. In evaluation
    mode, this module does nothing.

    Attributes:
        keys: [B] integers, set by `set_dropout_keys` before each forward in training.
    """

    def __init__(self, share: float, name: str) -> None:
        super().__init__()
        self.share = share
        self.layer_key = key_to_seed(name)
        self.keys: Tensor | None = None

    def forward(self, values: Tensor) -> Tensor:
        if not self.training:
            return values
        assert self.keys is not None, "call set_dropout_keys before a forward in training"
        keys = _row_keys(self.keys.to(values.device), len(values)) ^ self.layer_key
        kept = random_bits(keys, values[0].numel()) >= int(self.share * 2**BITS)
        return values * kept.reshape(values.shape).to(values.dtype) / (1.0 - self.share)


def key_dropout(network: nn.Module) -> None:
    """Replace the dropout of a stock network by `KeyedDropout`, which drops as much; layers without any stay."""
    for name, layer in list(network.named_modules()):
        if type(layer) is nn.Dropout and layer.p > 0:
            network.set_submodule(name, KeyedDropout(layer.p, name))


def set_dropout_keys(module: nn.Module, noise: Tensor) -> None:
    """Give every KeyedDropout in `module` the keys of the next samples.

    Args:
        noise: [B, C, h, w] in float32, drawn from (seed, epoch, sample id): its first 64 bits are the samples' keys.
    """
    keys = noise.flatten(1)[:, :2].contiguous().view(torch.int64)[:, 0]
    for inner in module.modules():
        if isinstance(inner, KeyedDropout):
            inner.keys = keys


def _row_keys(keys: Tensor, num_rows: int) -> Tensor:
    """[B] -> [R], where a sample has R / B consecutive rows, each with a different key."""
    assert num_rows % len(keys) == 0, f"{num_rows} rows of {len(keys)} samples"
    rows_a_sample = num_rows // len(keys)
    number = torch.arange(num_rows, device=keys.device) % rows_a_sample
    return keys.repeat_interleave(rows_a_sample) + number


def random_bits(keys: Tensor, count: int) -> Tensor:
    """[R] keys -> [R, count] integers of 53 bits, by SplitMix64 (Steele et al. 2014): the same on every device."""
    state = _mix(keys)[:, None] + torch.arange(1, count + 1, device=keys.device) * -0x61C8864680B583EB
    return _shift(_mix(state), 64 - BITS)


def _mix(z: Tensor) -> Tensor:
    z = (z ^ _shift(z, 30)) * -0x40A7B892E31B1A47
    z = (z ^ _shift(z, 27)) * -0x6B2FB644ECCEEE15
    return z ^ _shift(z, 31)


def _shift(z: Tensor, bits: int) -> Tensor:
    """Logical right shift of 64-bit integers; torch has only the arithmetic one."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)

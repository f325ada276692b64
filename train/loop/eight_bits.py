"""Tensors of moments in 8 bits: a scale for each block, and one of 256 levels for each number.

Block-wise dynamic quantization (Dettmers et al. 2022, section 2): the levels are dense around zero, seven decades of
them, each with twice as many as the one below it. So a small number next to a large one keeps a few significant bits.
"""

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import pad

BLOCK = 256
"""Neighbouring numbers that share a scale."""
SMALLEST = 4096
"""Tensors with fewer numbers stay in float32: biases and norms, which are few and matter (ibid., section 2.3)."""
NUM_DECADES = 7


@lru_cache(maxsize=8)
def levels(signed: bool, device: torch.device) -> Tensor:
    """The 256 levels in rising order, [256] from -1 or 0 to 1.

    Decade k, from 10^(k - 7) to 10^(k - 6), is cut into 2^k equal parts, or twice as many without a sign; their middles
    are levels. So are 0 and 1.
    """
    positive = []
    for decade in range(NUM_DECADES):
        num_parts = 2 ** (decade if signed else decade + 1)
        middles = (0.1 + 0.9 * (part + 0.5) / num_parts for part in range(num_parts))
        positive += [middle * 10.0 ** (decade - NUM_DECADES + 1) for middle in middles]
    negative = [-level for level in positive] if signed else []
    return torch.tensor(sorted([*negative, *positive, 0.0, 1.0]), dtype=torch.float32, device=device)


def to_eight_bits(values: Tensor, *, signed: bool) -> tuple[Tensor, Tensor]:
    """float32 [...] -> codes [...] in uint8 and scales [ceil(N / BLOCK)], the largest amount in each block.

    Args:
        signed: without a sign, values must not be negative, and none above zero becomes zero: the root of a second
            moment divides the step, which would be huge.
    """
    blocks = _blocks(values)
    scales = blocks.abs().amax(dim=1)
    shares = blocks / scales.clamp(min=torch.finfo(torch.float32).tiny)[:, None]
    known = levels(signed, values.device)
    codes = torch.bucketize(shares, (known[1:] + known[:-1]) / 2)
    if not signed:
        codes = torch.where(shares > 0, codes.clamp(min=1), codes)
    return _unblocked(codes.to(torch.uint8), values), scales


def from_eight_bits(codes: Tensor, scales: Tensor, *, signed: bool) -> Tensor:
    """The numbers that codes and scales stand for, in float32."""
    blocks = levels(signed, codes.device)[_blocks(codes).int()] * scales[:, None]
    return _unblocked(blocks, codes)


def _blocks(values: Tensor) -> Tensor:
    """[...] -> [ceil(N / BLOCK), BLOCK] in the order of the indices, the last one filled up with zeros."""
    flat = values.reshape(-1)
    return pad(flat, (0, -len(flat) % BLOCK)).view(-1, BLOCK)


def _unblocked(blocks: Tensor, like: Tensor) -> Tensor:
    """The inverse of `_blocks`, with the shape and the memory layout of `like`."""
    whole = blocks.reshape(-1)[: like.numel()].view(like.shape)
    return torch.empty_like(like, dtype=blocks.dtype).copy_(whole)

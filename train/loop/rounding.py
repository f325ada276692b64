"""Stochastic rounding: float32 to bfloat16 so that the expectation is exact.

A bfloat16 is the upper half of a float32. Uniform noise on the lower half, which is then cut off, rounds a number that
lies a fraction f of the way between two neighbours up with probability f (Gupta et al. 2015, section 3). Rounding to
the nearest would drop every step below half the distance: weights of bfloat16 would stand still where the learning rate
is small.
"""

import torch
from torch import Tensor

LOWER_BITS = 16


def round_stochastically(values: Tensor, generator: torch.Generator) -> Tensor:
    """float32 [...] -> bfloat16 [...], each to one of its two neighbours, with the exact value as expectation.

    Numbers that bfloat16 can hold, and infinities, stay as they are. The memory layout is kept.

    Args:
        generator: on the device of the values.
    """
    assert values.dtype == torch.float32
    noise = torch.empty_like(values, dtype=torch.int32).random_(0, 1 << LOWER_BITS, generator=generator)
    upper = (noise.add_(values.view(torch.int32)) >> LOWER_BITS) << LOWER_BITS
    return upper.view(torch.float32).to(torch.bfloat16)

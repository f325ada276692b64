"""Trained networks in bfloat16, and back in float32 when the training is over."""

from collections.abc import Callable

import torch
from torch import nn


def to_bfloat16(module: nn.Module) -> Callable[[], None]:
    """Cast each child of `module` that has trained weights, as a whole: a network computes in one number format.

    Parameters remain the same objects.

    Returns:
        a function that makes them float32 again. Weights that were frozen, such as layers of a text encoder that the
        denoiser does not read, then have the values that they had before.
    """
    trained = [child for child in module.children() if any(p.requires_grad for p in child.parameters())]
    frozen = [(p, p.detach().clone()) for child in trained for p in child.parameters() if not p.requires_grad]
    for child in trained:
        child.to(torch.bfloat16)

    def undo() -> None:
        for child in trained:
            child.float()
        for parameter, before in frozen:
            parameter.data.copy_(before)

    return undo

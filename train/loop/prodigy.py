"""Prodigy (Mishchenko & Defazio 2024): AdamW that estimates its own learning rate. The library is prodigyopt.

It keeps d, an estimate of how far the weights have to move, that grows during the first steps, and makes steps of d
times the learning rate of the settings, which is a factor and usually 1. All weights share one d.
"""

from collections.abc import Mapping
from typing import Any

import torch

from ldm.errors import UserError

ESTIMATE = ("d", "d_max", "d_numerator", "k")
"""What the optimizer keeps besides its tensors, in every parameter group alike."""


def make_prodigy(groups: list[dict[str, Any]], learning_rate: float, beta2: float) -> torch.optim.Optimizer:
    """The optimizer, with decoupled weight decay and the bias correction of Adam.

    Raises:
        UserError: prodigyopt is not installed.
    """
    try:
        from prodigyopt import Prodigy
    except ImportError:
        raise UserError("optim.optimizer = 'prodigy' needs prodigyopt", "pip install prodigyopt") from None
    optimizer: torch.optim.Optimizer = Prodigy(
        groups,
        lr=learning_rate,
        betas=(0.9, beta2),
        use_bias_correction=True,
        safeguard_warmup=True,  # otherwise the estimate grows from steps that a warm-up made small
    )
    return optimizer


def estimate_of(optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """d and what it is computed from, for a checkpoint; empty for any other optimizer."""
    group = optimizer.param_groups[0]
    return {key: group[key] for key in ESTIMATE} if "d_numerator" in group else {}


def load_estimate(optimizer: torch.optim.Optimizer, estimate: Mapping[str, float]) -> None:
    """Restore what `estimate_of` returned."""
    for group in optimizer.param_groups:
        group.update({key: estimate[key] for key in ESTIMATE if key in estimate})
        if "k" in estimate:
            group["k"] = int(estimate["k"])


def effective_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> float:
    """The learning rate times the optimizer's own estimate, if it makes one."""
    return learning_rate * float(optimizer.param_groups[0].get("d", 1.0))

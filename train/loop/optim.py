"""Learning rate and optimizer; the unit of both is the optimizer step."""

import math
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn

from ldm.errors import UserError

from ..settings.shared import OptimizerName, OptimSettings

ParameterGroup = dict[str, Any]
"""`params`: a list; `lr_scale`: of the learning rate, 1 where it is left out; `weight_decay`: in place of the
settings'; `name`."""


def learning_rate_at(step: int, num_steps: int, settings: OptimSettings) -> float:
    """The learning rate of optimizer step `step` (from 0): linear warm-up, then constant or half a cosine."""
    peak, warmup = settings.learning_rate, settings.num_warmup_steps
    if step < warmup:
        return peak * (step + 1) / warmup
    if settings.lr_schedule == "constant":
        return peak
    progress = min(1.0, (step - warmup) / max(1, num_steps - warmup))
    floor = settings.final_lr_fraction
    return peak * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress)))


def make_optimizer(
    trained: nn.Module | Iterable[nn.Parameter], settings: OptimSettings, name: OptimizerName | None = None
) -> torch.optim.Optimizer:
    """AdamW; weight decay on matrices and kernels only, not on biases and norms.

    Args:
        trained: a module, asked for its `parameter_groups() -> list[ParameterGroup]` if it has that; or parameters.
            What has no `requires_grad` is left out.
        name: default: `settings.optimizer` where the settings have it, else fused AdamW.

    Raises:
        UserError: eight bits were asked for without bitsandbytes or without CUDA.
    """
    groups = [half for group in _groups_of(trained) for half in _split_decay(group, settings.weight_decay)]
    options: dict[str, Any] = {"lr": settings.learning_rate, "betas": (0.9, settings.beta2)}
    if (name or settings.optimizer) == "adamw_8bit":
        optimizer: torch.optim.Optimizer = _eight_bit_adamw()(groups, **options)
        return optimizer
    return torch.optim.AdamW(groups, **options, fused=True)


def _groups_of(trained: nn.Module | Iterable[nn.Parameter]) -> list[ParameterGroup]:
    groups: Any = getattr(trained, "parameter_groups", None)
    if groups is not None:
        return list(groups())
    return [{"params": list(trained.parameters() if isinstance(trained, nn.Module) else trained)}]


def _split_decay(group: ParameterGroup, weight_decay: float) -> Iterator[ParameterGroup]:
    """A group as one of matrices, which decay, and one of vectors, which do not; the empty ones left out."""
    trained = [p for p in group["params"] if p.requires_grad]
    own = {"lr_scale": 1.0, "weight_decay": weight_decay} | group
    halves: list[ParameterGroup] = [own | {"params": [p for p in trained if p.ndim > 1]}]
    halves.append(own | {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0})
    yield from (half for half in halves if half["params"])


def _eight_bit_adamw() -> Any:
    if not torch.cuda.is_available():
        raise UserError("optim.optimizer = 'adamw_8bit' without a CUDA device", "set optim.optimizer=adamw")
    try:
        from bitsandbytes.optim import AdamW8bit
    except Exception as error:  # it fails in many ways where it does not suit the CUDA that is there
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"optim.optimizer = 'adamw_8bit' needs bitsandbytes ({reason})",
            "pip install 'open-ldm[eight-bit]'",
        ) from error
    return AdamW8bit


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Give every parameter group this learning rate times its own `lr_scale`."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group.get("lr_scale", 1.0)

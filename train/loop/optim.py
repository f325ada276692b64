"""Learning rate, optimizer, and the step that moves the weights; the unit of all three is the optimizer step."""

import math
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ldm.errors import UserError

from ..settings.shared import OptimizerName, OptimSettings
from .prodigy import make_prodigy
from .sharding import full
from .small_adamw import SmallAdamW
from .state import TrainState

ParameterGroup = dict[str, Any]
"""`params`: a list; `lr_scale`: factor of the learning rate, default 1; `weight_decay`: overrides the settings;
`name`."""


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


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Give every parameter group this learning rate times its own `lr_scale`."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group.get("lr_scale", 1.0)


# The optimizer


def make_optimizer(
    trained: nn.Module | Iterable[nn.Parameter],
    settings: OptimSettings,
    name: OptimizerName | None = None,
    *,
    seed: int = 0,
) -> torch.optim.Optimizer:
    """AdamW or Prodigy; weight decay on matrices and kernels only, not on biases and norms.

    Args:
        trained: parameters, or a module; if it has `parameter_groups() -> list[ParameterGroup]`, those are used.
            Parameters without `requires_grad` are left out.
        name: default: `settings.optimizer`.
        seed: of the noise with which weights of bfloat16 are rounded.

    Raises:
        UserError: the library of the optimizer is not installed, or 8-bit AdamW was requested without CUDA.
    """
    groups = [half for group in _groups_of(trained) for half in _split_decay(group, settings.weight_decay)]
    options: dict[str, Any] = {"lr": settings.learning_rate, "betas": (0.9, settings.beta2)}
    if (name or settings.optimizer) == "adamw_8bit":
        optimizer: torch.optim.Optimizer = _eight_bit_adamw()(groups, **options)
        return optimizer
    if (name or settings.optimizer) == "prodigy":
        return make_prodigy(groups, settings.learning_rate, settings.beta2)
    eight_bits = settings.moments == "8bit"
    if eight_bits or settings.weights == "bfloat16":
        return SmallAdamW(groups, **options, eight_bits=eight_bits, seed=seed)
    return torch.optim.AdamW(groups, **options, fused=True)


def _groups_of(trained: nn.Module | Iterable[nn.Parameter]) -> list[ParameterGroup]:
    groups: Any = getattr(trained, "parameter_groups", None)
    if groups is not None:
        return list(groups())
    return [{"params": list(trained.parameters() if isinstance(trained, nn.Module) else trained)}]


def _split_decay(group: ParameterGroup, weight_decay: float) -> Iterator[ParameterGroup]:
    """Split a group into matrices, which decay, and vectors, which do not; empty groups are left out."""
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
    except Exception as error:  # it fails in many ways when it does not match the installed CUDA
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"optim.optimizer = 'adamw_8bit' needs bitsandbytes ({reason})",
            "pip install bitsandbytes",
        ) from error
    return AdamW8bit


# The step: clip the gradient and move the weights, unless something is not finite. Nothing waits for the device.


def apply_gradients(
    state: TrainState, parameters: list[nn.Parameter], loss: Tensor, max_grad_norm: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Clip the gradient and move the weights, unless the loss or the gradient is not finite.

    Returns:
        the gradient's norm before clipping, whether the step was skipped, and whether it was a bad step; numbers on the
        device. With fp16, a step skipped only because the scaled gradient overflowed is not bad: the scale is lowered.
    """
    scaler = state.scaler
    if scaler is not None:
        scaler.unscale_(state.optimizer)
    norm = nn.utils.get_total_norm(_precise([p.grad for p in parameters if p.grad is not None]))
    grad_norm = full(norm)
    loss_fault = ~torch.isfinite(loss)
    skipped = bad = loss_fault | ~torch.isfinite(grad_norm)
    step_clipped(skipped, state.optimizer, parameters, norm, max_grad_norm)
    if scaler is not None:
        bad = loss_fault | (skipped & (scale_on_device(scaler) <= 1))
        scaler.update()
    return grad_norm, skipped, bad


def _precise(gradients: list[Tensor]) -> list[Tensor]:
    """What the norm of the gradients is taken of: of those in bfloat16 the norms, in float32."""
    if all(each.dtype == torch.float32 for each in gradients):
        return gradients
    return [torch.linalg.vector_norm(each, dtype=torch.float32) for each in gradients]


def step_clipped(
    skipped: Tensor,
    optimizer: torch.optim.Optimizer,
    parameters: list[nn.Parameter],
    norm: Tensor,
    max_norm: float,
) -> None:
    """`step_unless`, with gradients of norm `norm` scaled down to `max_norm` if they are longer.

    A fused optimizer scales them as it reads them, which saves a pass over memory; it cannot if they are sharded.
    """
    if decides_on_device(optimizer) and not isinstance(norm, DTensor):
        optimizer.grad_scale = ((norm.float() + 1e-6) / max_norm).clamp(min=1.0)  # type: ignore[attr-defined]
    else:
        nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    step_unless(skipped, optimizer)


def step_unless(skipped: Tensor, optimizer: torch.optim.Optimizer) -> None:
    """One optimizer step, which changes no weight, moment or step counter if `skipped` is true.

    Fused optimizers read `found_inf` on the device; for any other optimizer the host has to wait.
    """
    if decides_on_device(optimizer):
        optimizer.found_inf = skipped.float()  # type: ignore[attr-defined]
        optimizer.step()
    elif not skipped.item():
        optimizer.step()


def decides_on_device(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the optimizer's kernel reads `grad_scale` and `found_inf`, as fused AdamW does.

    Only a private attribute says so; torch's own GradScaler reads it for the same purpose.
    """
    return bool(getattr(optimizer, "_step_supports_amp_scaling", False))


def scale_on_device(scaler: torch.amp.GradScaler) -> Tensor:
    """The scale of the loss. `scaler.get_scale()`, the public way, would wait for the device."""
    assert scaler._scale is not None  # set when the loss was scaled
    return scaler._scale

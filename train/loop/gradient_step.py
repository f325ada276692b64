"""From a gradient to moved weights: clipped, and left out where something is not finite; no device is waited for."""

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ..run.state import TrainState
from .sharding import full


def apply_gradients(
    state: TrainState, parameters: list[nn.Parameter], loss: Tensor, max_grad_norm: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Clip the gradient and move the weights, unless the loss or the gradient is not finite.

    Returns:
        the gradient's norm before clipping, whether the step was skipped, and whether it was a bad one; numbers on
        the device. With fp16 an overflow of the gradient alone is no bad step: the next scale is lower.
    """
    scaler = state.scaler
    if scaler is not None:
        scaler.unscale_(state.optimizer)
    norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    grad_norm = full(norm)
    loss_fault = ~torch.isfinite(loss)
    skipped = bad = loss_fault | ~torch.isfinite(grad_norm)
    step_clipped(skipped, state.optimizer, parameters, norm, max_grad_norm)
    if scaler is not None:
        assert scaler._scale is not None  # made by scaling the loss
        bad = loss_fault | (skipped & (scaler._scale <= 1))
        scaler.update()
    return grad_norm, skipped, bad


def step_clipped(
    skipped: Tensor,
    optimizer: torch.optim.Optimizer,
    parameters: list[nn.Parameter],
    norm: Tensor,
    max_norm: float,
) -> None:
    """`step_unless` with gradients of norm `norm` scaled down to `max_norm` where they are longer.

    A fused optimizer divides as it reads them, which spares a pass over the memory; not so where they are cut.
    """
    if getattr(optimizer, "_step_supports_amp_scaling", False) and not isinstance(norm, DTensor):
        optimizer.grad_scale = ((norm.float() + 1e-6) / max_norm).clamp(min=1.0)  # type: ignore[attr-defined]
    else:
        nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    step_unless(skipped, optimizer)


def step_unless(skipped: Tensor, optimizer: torch.optim.Optimizer) -> None:
    """One optimizer step that changes nothing where `skipped` is true: no weight, no moment, no step counter.

    Fused optimizers read `found_inf` on the device; any other has to wait for it.
    """
    if getattr(optimizer, "_step_supports_amp_scaling", False):
        optimizer.found_inf = skipped.float()  # type: ignore[attr-defined]
        optimizer.step()
    elif not skipped.item():
        optimizer.step()

"""The optimizer's step within the backward pass: each weight moves as soon as its gradient is there.

The gradient is freed at once, so that hardly more than one is in memory at a time (Lv et al. 2023, section 3.1). A step
is exactly that of `apply_gradients`, as long as nothing has to be known of all gradients before the first weight moves:
no clipping by their norm, no further micro-batch and no other process. If a gradient is not finite, its weight stays;
the others have moved, or still do.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .optim import step_unless


class FusedBackward:
    """Moves each parameter in the backward pass of `moving`'s block.

    Attributes:
        loss_fault: whether the loss is not finite, in which case nothing moves.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer
        self.loss_fault = torch.tensor(False)
        self._group_of = {p: group for group in optimizer.param_groups for p in group["params"]}
        self._norms: dict[Tensor, Tensor] = {}

    @contextmanager
    def moving(self) -> Iterator["FusedBackward"]:
        """Inside the block, a backward pass moves the parameters."""
        hooks = [p.register_post_accumulate_grad_hook(self._move) for p in self._group_of]
        try:
            yield self
        finally:
            for hook in hooks:
                hook.remove()

    def begin(self, loss: Tensor) -> None:
        """Note the loss of the backward pass that follows."""
        self.loss_fault = ~torch.isfinite(loss.detach())

    def finish(self, parameters: list[nn.Parameter]) -> tuple[Tensor, Tensor, Tensor]:
        """After the backward pass: what `apply_gradients` returns, for the same parameters."""
        norms = torch.stack([self._norms[p] for p in parameters if p in self._norms])
        self._norms.clear()
        norm = torch.linalg.vector_norm(norms)
        return norm, self.loss_fault, self.loss_fault | ~torch.isfinite(norm)

    @torch.no_grad()
    def _move(self, parameter: Tensor) -> None:
        assert parameter.grad is not None
        norm = torch.linalg.vector_norm(parameter.grad, dtype=torch.float32)
        self._norms[parameter] = norm
        with only(parameter, self._group_of[parameter], self.optimizer):
            step_unless(self.loss_fault | ~torch.isfinite(norm), self.optimizer)
        parameter.grad = None


@contextmanager
def only(parameter: Tensor, group: dict[str, Any], optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Inside the block, the optimizer has no other parameter than this one of a group."""
    everything = optimizer.param_groups
    optimizer.param_groups = [{**group, "params": [parameter]}]
    try:
        yield
    finally:
        optimizer.param_groups = everything

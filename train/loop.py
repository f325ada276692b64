"""The training loop: one generator, one record an optimizer step; the program's main loop is a `for` over it."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from .optim import learning_rate_at, set_learning_rate
from .settings import TrainSettings
from .state import TrainState

Batch = dict[str, Any]


@dataclass(frozen=True)
class StepRecord:
    """One optimizer step.

    Attributes:
        step: steps done, from 1.
        metrics: means over the rank's samples, left on the device so that nothing waits for it.
        grad_norm: before clipping.
    """

    step: int
    learning_rate: float
    metrics: dict[str, Tensor]
    grad_norm: Tensor


def train_steps(
    state: TrainState,
    model: nn.Module,
    batches: Iterable[Batch],
    accelerator: Accelerator,
    settings: TrainSettings,
) -> Iterator[StepRecord]:
    """Train on `batches`, one an optimizer step, from `state.step` on; `state` is up to date at each yield.

    Args:
        model: `state.task` as Accelerate prepared it. It maps a batch to a dictionary of per-sample tensors [b],
            among them `loss`.
    """
    parameters = [p for p in state.task.parameters() if p.requires_grad]
    for batch in batches:
        learning_rate = learning_rate_at(state.step, settings.num_steps, settings.optim)
        set_learning_rate(state.optimizer, learning_rate)
        metrics = accumulate_gradients(model, batch, accelerator, settings)
        grad_norm = nn.utils.clip_grad_norm_(parameters, settings.optim.max_grad_norm)
        state.optimizer.step()
        state.optimizer.zero_grad(set_to_none=True)
        state.step += 1
        state.average.update(state.step)
        yield StepRecord(state.step, learning_rate, metrics, grad_norm)


def accumulate_gradients(
    model: nn.Module, batch: Batch, accelerator: Accelerator, settings: TrainSettings
) -> dict[str, Tensor]:
    """Add up the gradient of the mean loss over the *global* batch, in micro-batches; returns the metrics' means.

    DDP averages gradients over the ranks, so a rank's share is weighed by the number of processes over the samples
    of the global batch: ranks with fewer samples then count for less, as they should.
    """
    micros = list(micro_batches(batch, settings.max_micro_batch))
    total = accelerator.reduce(batch["weight"].sum().to(accelerator.device), "sum")
    sums: dict[str, Tensor] = {}
    for number, micro in enumerate(micros, 1):
        last = number == len(micros)
        with nullcontext() if last else accelerator.no_sync(model), accelerator.autocast():
            losses = model(to_device(micro, accelerator.device))
            weight = micro["weight"].to(accelerator.device)
            loss = (losses["loss"] * weight).sum() * accelerator.num_processes / total
            accelerator.backward(loss)
        for name, values in losses.items():
            part = (values.detach() * weight).sum()
            sums[name] = sums[name] + part if name in sums else part
    return {name: accelerator.reduce(value, "sum") / total for name, value in sums.items()}


def micro_batches(batch: Batch, size: int) -> Iterator[Batch]:
    """A batch cut into pieces of at most `size` samples."""
    for start in range(0, len(batch["weight"]), size):
        yield {name: values[start : start + size] for name, values in batch.items()}


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch with its tensors on `device`."""
    return {
        name: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
        for name, value in batch.items()
    }


@dataclass(frozen=True)
class Periodic:
    """Something to do every so many optimizer steps, and at the end."""

    every: int
    action: Callable[[int], None]

    def due(self, step: int, last: int) -> bool:
        """Whether the step just done asks for it."""
        return step % self.every == 0 or step == last

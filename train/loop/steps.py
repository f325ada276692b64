"""The training steps: a generator that yields one record per optimizer step. `Run.train` loops over it."""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ldm import noise
from ldm.errors import UserError
from ldm.models.devices import free_cached_memory, is_out_of_memory
from ldm.models.engines.compiled import is_compiled

from ..settings.shared import TrainSettings
from .fused_backward import FusedBackward
from .optim import apply_gradients, learning_rate_at, set_learning_rate
from .processes import all_reduce_max, processes_of
from .prodigy import effective_learning_rate
from .sharding import is_sharded
from .state import LearnsFromLosses, TrainState

Batch = dict[str, Any]


@dataclass(frozen=True)
class StepRecord:
    """One optimizer step. Its tensors stay on the device, so that nothing waits for it.

    Attributes:
        step: steps done, from 1.
        metrics: means over the global batch.
        grad_norm: before clipping.
        skipped: whether the weights were left unchanged because the loss or the gradient was not finite.
        bad: whether it was skipped for another reason than an fp16 overflow, which a lower loss scale fixes.
        sample_ids: of this process's samples.
        sample_losses: [b], their losses.
        micro_batch: the most samples that went through the network at once.
    """

    step: int
    learning_rate: float
    metrics: dict[str, Tensor]
    grad_norm: Tensor
    skipped: Tensor = field(default_factory=lambda: torch.tensor(False))
    bad: Tensor = field(default_factory=lambda: torch.tensor(False))
    sample_ids: list[str] = field(default_factory=list)
    sample_losses: Tensor = field(default_factory=lambda: torch.zeros(0))
    micro_batch: int = 0


def train_steps(
    state: TrainState,
    model: nn.Module,
    batches: Iterable[Batch],
    accelerator: Accelerator,
    settings: TrainSettings,
    *,
    may_split: bool = True,
) -> Iterator[StepRecord]:
    """Train on `batches`, one per optimizer step, from `state.step` on; `state` is up to date at each yield.

    Args:
        model: `state.module` as Accelerate prepared it. It maps a batch to a dictionary of per-sample tensors [b],
            including `loss`.
        may_split: whether each sample's loss is independent of the others, so that smaller micro-batches give the
            same result.

    Raises:
        UserError: one sample does not fit in the device's memory, or with several processes one's share does not.
    """
    parameters = [p for p in state.module.parameters() if p.requires_grad]
    size, compiled = settings.max_micro_batch, is_compiled(model)
    processes = processes_of(accelerator)
    share = -(-settings.global_batch_size // processes.num_processes)
    fused = FusedBackward(state.optimizer) if settings.optim.fused_backward else None
    for batch in batches:
        if compiled:
            batch = padded(batch, min(-(-len(batch["weight"]) // size) * size, share))
        learning_rate = learning_rate_at(state.step, settings.num_steps, settings.optim)
        set_learning_rate(state.optimizer, learning_rate)
        # what the networks draw themselves (dropout) is a function of the step as well
        torch.manual_seed(noise.key_to_seed(settings.seed, state.step, processes.rank, "network"))
        with fused.moving() if fused else nullcontext():
            size, gradients = gradients_in_memory(
                model,
                batch,
                accelerator,
                size,
                clear=state.clear_step,
                may_split=may_split and fused is None,
                begin=fused.begin if fused else None,
            )
        loss = gradients.metrics["loss"]
        if fused:
            grad_norm, skipped, bad = fused.finish(parameters)
        else:
            longest = settings.optim.max_grad_norm or math.inf
            grad_norm, skipped, bad = apply_gradients(state, parameters, loss, longest)
        state.optimizer.zero_grad(set_to_none=True)
        state.step += 1
        state.average.update(state.step, skipped)
        learn_from_losses(state.module, accelerator, skipped)
        yield StepRecord(
            state.step,
            effective_learning_rate(state.optimizer, learning_rate),
            gradients.metrics,
            grad_norm,
            skipped,
            bad,
            gradients.sample_ids,
            gradients.sample_losses,
            size,
        )


def learn_from_losses(module: nn.Module, accelerator: Accelerator, skipped: Tensor) -> None:
    """Show a module that draws its samples by their losses what all processes have seen in a step."""
    own = module.observed() if isinstance(module, LearnsFromLosses) else None
    if own is None:
        return
    assert isinstance(module, LearnsFromLosses)
    found = accelerator.gather(accelerator.pad_across_processes(own, dim=0, pad_index=-1)).cpu()
    if not skipped:
        module.learn(found[found[:, 0] >= 0])
    module.start_step()


@dataclass(frozen=True)
class Gradients:
    """Of a global batch: the means of its metrics, and the losses [b] of this process's samples."""

    metrics: dict[str, Tensor]
    sample_ids: list[str]
    sample_losses: Tensor


def gradients_in_memory(
    model: nn.Module,
    batch: Batch,
    accelerator: Accelerator,
    size: int,
    *,
    clear: Callable[[], None],
    may_split: bool = True,
    begin: Callable[[Tensor], None] | None = None,
) -> tuple[int, Gradients]:
    """`accumulate_gradients`, repeated with half the micro-batch each time it does not fit in the device's memory.

    Args:
        size: the largest micro-batch to try.
        clear: discards the gradients accumulated so far.
        begin: called with each loss before its backward pass.

    Returns:
        the size that fitted, and the gradients.

    Raises:
        UserError: the micro-batch cannot be halved any further.
    """
    while True:
        try:
            return size, accumulate_gradients(model, batch, accelerator, size, begin)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            size = min(size, len(batch["weight"]))
            hint = _why_not_halved(size, processes_of(accelerator).num_processes, may_split)
            if hint:
                raise UserError(f"out of memory with {size} samples at once", hint) from error
            size = -(-size // 2)
        clear()
        free_cached_memory()


def _why_not_halved(size: int, num_processes: int, may_split: bool) -> str:
    """What the user has to do where micro-batches of `size` cannot be halved; empty if they can."""
    if size == 1:
        return "use smaller images or a smaller network"
    if not may_split:
        return "choose a smaller global_batch_size"
    # the other processes would wait forever for gradients
    return f"set max_micro_batch={size // 2}" if num_processes > 1 else ""


def accumulate_gradients(
    model: nn.Module,
    batch: Batch,
    accelerator: Accelerator,
    max_micro_batch: int,
    begin: Callable[[Tensor], None] | None = None,
) -> Gradients:
    """Accumulate the gradient of the mean loss over the *global* batch, in micro-batches.

    DDP averages gradients over the processes. Each process therefore weights its summed loss by the number of processes
    divided by the samples of the global batch, so that processes with fewer samples count for less.
    """
    micros = list(micro_batches(batch, max_micro_batch))
    num_processes = processes_of(accelerator).num_processes
    if is_sharded(model):  # each forward pass gathers weights from all processes, so all need the same number
        idle = {**micros[-1], "weight": torch.zeros_like(micros[-1]["weight"])}
        micros += [idle] * (all_reduce_max(len(micros)) - len(micros))
    total = accelerator.reduce(to_device(batch["weight"], accelerator.device).sum(), "sum")
    sums: Tensor | None = None
    sample_losses = []
    for number, micro in enumerate(micros, 1):
        last = number == len(micros)
        micro = batch_to_device(micro, accelerator.device)
        weight = micro["weight"]
        with nullcontext() if last else accelerator.no_sync(model), accelerator.autocast():
            losses = model(micro)
            loss = (losses["loss"] * weight).sum() * num_processes / total
            if begin is not None:
                begin(loss)
            accelerator.backward(loss)
        sample_losses.append(losses["loss"].detach())
        part = sums_of(losses, weight)
        sums = part if sums is None else sums + part
    means = accelerator.reduce(sums, "sum").unbind()
    metrics = dict(zip(losses, means[0] / means[1], strict=True))
    own_losses = torch.cat(sample_losses)[: len(batch["weight"])]
    return Gradients(metrics, list(batch["sample_id"]), own_losses)


@torch.no_grad()
def sums_of(losses: dict[str, Tensor], weight: Tensor) -> Tensor:
    """[2, N]: for each of N per-sample tensors [b] the weighted sum, and the total weight of the samples with a value.

    NaN means no value, for instance in the loss of a tenth of the timesteps that the sample is not in, except in
    `loss` itself.
    """
    values = torch.stack([value.float() for value in losses.values()])
    absent = values.isnan()
    absent[list(losses).index("loss")] = False
    return torch.stack([(values.masked_fill(absent, 0) * weight).sum(dim=1), (~absent * weight).sum(dim=1)])


def micro_batches(batch: Batch, size: int) -> Iterator[Batch]:
    """Split a batch into pieces of at most `size` samples."""
    for start in range(0, len(batch["weight"]), size):
        yield {name: values[start : start + size] for name, values in batch.items()}


def padded(batch: Batch, num_samples: int) -> Batch:
    """A batch filled up to `num_samples` with copies of its last sample that have weight 0.

    Compiled networks take a minute or more for each new batch size.
    """
    weight: Tensor = batch["weight"]
    count = len(weight)
    rows = [min(row, count - 1) for row in range(max(count, num_samples))]
    more = {
        name: values[rows] if isinstance(values, Tensor) else [values[row] for row in rows]
        for name, values in batch.items()
    }
    return more | {"weight": torch.cat([weight, weight.new_zeros(len(rows) - count)])}


def batch_to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch with its tensors on `device`."""
    return {n: to_device(value, device) if isinstance(value, Tensor) else value for n, value in batch.items()}


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on `device`. The host does not wait: copies to CUDA are made from page-locked memory."""
    if device.type == "cuda" and tensor.device.type == "cpu" and not tensor.is_pinned():
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


@dataclass(frozen=True)
class Periodic:
    """Something that is due every few optimizer steps, and at the end.

    Attributes:
        every: optimizer steps; 0: never.
        also: a second period.
    """

    every: int
    also: int | None = None

    def due(self, step: int, last: int) -> bool:
        """Whether it is due after `step`."""
        periods = [period for period in (self.every, self.also) if period]
        return bool(periods) and (step == last or any(step % period == 0 for period in periods))

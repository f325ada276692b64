"""What an optimizer step takes: a few real ones, their memory and their time. Nothing is written."""

import resource
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch.utils.data import Dataset

from ldm.data.order import SampleKey, epoch_batches, share_of, steps_per_epoch

from ..loop.steps import StepRecord, micro_batches, train_steps
from ..run.run import Run
from ..run.state import TrainState

NUM_TIMED, BUDGET_SEC = 5, 60.0
"""Steps that are timed, at most; no further one is begun after so many seconds."""

Size = tuple[int, int]


@dataclass(frozen=True)
class StepCost:
    """What optimizer steps take.

    Attributes:
        num_samples: of the heaviest batch, in this process.
        size: its height and width in pixels.
        micro_batch: how many of them went through the network at once; fewer than asked for where memory is short.
        num_micro_batches: into how many pieces that batch was cut.
        peak_bytes: memory in use at the peak of a step on it: allocated by torch on CUDA, else of the whole process.
        growth_bytes: how much more that is than before the model was put on its device.
        step_sec: median seconds of `num_timed` steps in the run's own order.
    """

    num_samples: int
    size: Size
    micro_batch: int
    num_micro_batches: int
    peak_bytes: int
    growth_bytes: int
    step_sec: float
    num_timed: int


def measure_steps(
    run: Run, state: TrainState, dataset: "Dataset[Any]", bucket_of: Sequence[Size], in_use: int
) -> StepCost:
    """Two steps on the heaviest batch, the second for its memory, then some in the run's order, for their time.

    Every process must call it. `state` is trained by it.

    Args:
        in_use: bytes of memory before the model was put on its device.
    """
    settings = run.settings
    heavy = heaviest_share(run, bucket_of, state.step)
    order = replace(run.order(bucket_of, state.step), num_steps=state.step + NUM_TIMED)
    model = run.prepare(state.module)
    loader = run.loader(dataset, [heavy, heavy, *order])
    records = train_steps(state, model, loader, run.accelerator, settings)
    next(records)  # makes the optimizer's state, prepares kernels, finds the micro-batch that memory holds
    forget_peak(run.device)
    micro_batch = next(records).micro_batch
    peak = peak_memory(run.device)
    settle(run.device)
    seconds = list(_timed(run, records))
    return StepCost(
        len(heavy),
        bucket_of[heavy[0].sample_index],
        min(micro_batch, len(heavy)),
        len(list(micro_batches({"weight": heavy}, micro_batch))),
        peak,
        max(0, peak - in_use),
        median(seconds),
        len(seconds),
    )


def heaviest_share(run: Run, bucket_of: Sequence[Size], step: int) -> list[SampleKey]:
    """This process's share of the batch with the most pixels at once, of those with the most pixels, of an epoch."""
    settings, accelerator = run.settings, run.accelerator
    size = settings.global_batch_size
    batches = epoch_batches(
        step // steps_per_epoch(bucket_of, size),
        seed=settings.seed,
        bucket_of=bucket_of,
        global_batch_size=size,
    )
    num_processes = accelerator.num_processes

    def weight(batch: Sequence[SampleKey]) -> tuple[int, int]:
        height, width = bucket_of[batch[0].sample_index]
        num_here = -(-len(batch) // num_processes)
        return min(num_here, settings.max_micro_batch) * height * width, num_here * height * width

    return share_of(max(batches, key=weight), accelerator.process_index, num_processes)


def _timed(run: Run, records: Iterator[StepRecord]) -> Iterator[float]:
    """Seconds of each step; every process stops after the same one."""
    spent = 0.0
    while spent < BUDGET_SEC:
        begin = time.perf_counter()
        if next(records, None) is None:
            return
        settle(run.device)
        seconds = time.perf_counter() - begin
        yield seconds
        # rank 0's clock is as good as any, but all must read the same one
        told = torch.tensor(spent + seconds if run.main else 0.0, device=run.device)
        spent = float(run.accelerator.reduce(told, "sum"))


def settle(device: torch.device) -> None:
    """Wait for what the device still has to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


# Memory


def memory_in_use(device: torch.device) -> int:
    """Bytes allocated on a CUDA device; elsewhere the process's resident memory."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    return _status_bytes("VmRSS") or _largest_ever()


def forget_peak(device: torch.device) -> None:
    """Measure the peak from now on. Where the system does not let it, the peak is that of the process's life."""
    if device.type == "cuda":
        settle(device)
        torch.cuda.reset_peak_memory_stats(device)
        return
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory(device: torch.device) -> int:
    """The most bytes that were in use at once since `forget_peak`."""
    if device.type == "cuda":
        settle(device)
        return torch.cuda.max_memory_allocated(device)
    return _status_bytes("VmHWM") or _largest_ever()


def _status_bytes(name: str) -> int:
    """A line of Linux's /proc/self/status, or 0 where there is none."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
    return 0


def _largest_ever() -> int:
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else largest * 1024

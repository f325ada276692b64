"""What an optimizer step costs: memory and time of a few real ones. Nothing is written."""

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

from ldm.data.order import BatchOrder, SampleKey, share_of, steps_per_epoch

from ..loop.state import TrainState
from ..loop.steps import StepRecord, micro_batches, train_steps
from ..run.run import Run

NUM_TIMED, BUDGET_SEC = 5, 60.0
"""The most steps that are timed; after this many seconds, no further one is started."""

Size = tuple[int, int]


@dataclass(frozen=True)
class StepCost:
    """What optimizer steps cost.

    Attributes:
        num_samples: of the largest batch, in this process.
        size: its height and width in pixels.
        micro_batch: how many of them went through the network at once; fewer than requested if memory is short.
        num_micro_batches: into how many pieces that batch was split.
        peak_bytes: peak memory of a step on it: allocated by torch on CUDA, else of the whole process.
        growth_bytes: its increase since before the model was moved to its device.
        step_sec: median seconds of `num_timed` steps in the run's order.
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
    run: Run,
    state: TrainState,
    dataset: "Dataset[Any]",
    bucket_of: Sequence[Size],
    sample_ids: Sequence[str],
    in_use: int,
) -> StepCost:
    """Two steps on the largest batch, the second for its memory, then some in the run's order, for their time.

    Every process must call it. It trains `state`.

    Args:
        in_use: bytes of memory before the model was moved to its device.
    """
    settings = run.settings
    order = run.order(bucket_of, state.step, sample_ids)
    large = largest_share(run, order, bucket_of)
    order = replace(order, num_steps=state.step + NUM_TIMED)
    model = run.prepare(state.module)
    loader = run.loader(dataset, [large, large, *order])
    records = train_steps(state, model, loader, run.accelerator, settings)
    next(records)  # creates the optimizer's state, prepares kernels, finds the micro-batch that fits
    forget_peak(run.device)
    micro_batch = next(records).micro_batch
    peak = peak_memory(run.device)
    settle(run.device)
    seconds = list(_timed(run, records))
    return StepCost(
        len(large),
        bucket_of[large[0].sample_index],
        min(micro_batch, len(large)),
        len(list(micro_batches({"weight": large}, micro_batch))),
        peak,
        max(0, peak - in_use),
        median(seconds),
        len(seconds),
    )


def largest_share(run: Run, order: BatchOrder, bucket_of: Sequence[Size]) -> list[SampleKey]:
    """This process's share of the epoch's batch with the most pixels at once, and of equals the most pixels."""
    settings = run.settings
    batches = order.epoch(order.start_step // steps_per_epoch(bucket_of, order.global_batch_size))
    num_processes = run.processes.num_processes

    def weight(batch: Sequence[SampleKey]) -> tuple[int, int]:
        height, width = bucket_of[batch[0].sample_index]
        num_here = -(-len(batch) // num_processes)
        return min(num_here, settings.max_micro_batch) * height * width, num_here * height * width

    return share_of(max(batches, key=weight), run.processes.rank, num_processes)


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
        # all processes must use the same clock
        told = torch.tensor(spent + seconds if run.main else 0.0, device=run.device)
        spent = float(run.accelerator.reduce(told, "sum"))


def settle(device: torch.device) -> None:
    """Wait until the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


# Memory


def memory_in_use(device: torch.device) -> int:
    """Bytes allocated on a CUDA device; elsewhere the process's resident memory."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    return _status_bytes("VmRSS") or _largest_ever()


def forget_peak(device: torch.device) -> None:
    """Measure the peak from now on. If the system does not allow it, the peak is that of the whole process's life."""
    if device.type == "cuda":
        settle(device)
        torch.cuda.reset_peak_memory_stats(device)
        return
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory(device: torch.device) -> int:
    """The most bytes in use at once since `forget_peak`."""
    if device.type == "cuda":
        settle(device)
        return torch.cuda.max_memory_allocated(device)
    return _status_bytes("VmHWM") or _largest_ever()


def _status_bytes(name: str) -> int:
    """A value in Linux's /proc/self/status, or 0 if there is none."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
    return 0


def _largest_ever() -> int:
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else largest * 1024

"""The measured costs of a step, its gradient exchange and its batch: the inputs of docs/scaling.md."""

import os
import statistics
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ldm.evaluation.scaling import Costs

from . import cache
from .models import num_weights
from .samples import Setting, clean_median, timed
from .train import Case
from .workers import Answer, Side, Taken, Work, repeated, take_turns

LARGE_BYTES, NUM_SMALL, NUM_LARGE = 64 * 2**20, 100, 5
FILE_BYTES = 256 * 2**20


def measure_costs(
    folder: Path, step: Taken, case: Case, setting: Setting, links: tuple[Mapping[str, str], ...]
) -> dict[str, Any] | None:
    """All fields of `Costs` for a worker that is one process here; None without enough clean samples.

    Args:
        step: the timed steps of one process.
        links: the environments of two processes that can find each other.
    """
    compute_sec = clean_median(step.samples)
    sides = {"exchange": Side(repeated(make_exchange, setting.device), links)}
    taken = take_turns(sides, setting.rounds, setting.device)["exchange"]
    small, large = (clean_median(taken.samples, name) for name in ("small_sec", "large_sec"))
    if compute_sec is None or small is None or large is None or large <= small:
        return None
    link = LARGE_BYTES / (large - small)
    costs = Costs(
        compute_sec=compute_sec,
        gradient_bytes=4.0 * num_weights(case.shape, case.size_px),
        node_bytes_per_sec=link,
        network_bytes_per_sec=link,
        latency_sec=small / 2,  # a ring of two sends two messages
        gpus_per_node=max(1, torch.cuda.device_count()) if setting.device.startswith("cuda") else 1,
        overlap_fraction=0.0,
        samples_per_gpu=case.batch_size,
        storage_bytes_per_sec=storage_rate(folder),
        **loading_costs(folder, case),
    )
    return asdict(costs)


def make_exchange(device: str) -> Work:
    """All-reduce tensors over two processes: a small one for the latency, a large one for the bandwidth."""
    cuda = device.startswith("cuda")
    where = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if cuda else torch.device("cpu")
    torch.distributed.init_process_group("nccl" if cuda else "gloo")
    small, large = (torch.ones(size, device=where) for size in (1, LARGE_BYTES // 4))

    def work(warming_up: bool) -> tuple[Answer, dict[str, float]]:
        return None, {"small_sec": _sum_sec(small, NUM_SMALL), "large_sec": _sum_sec(large, NUM_LARGE)}

    return work


def _sum_sec(tensor: torch.Tensor, times: int) -> float:
    """The median time of an all-reduce of a tensor."""
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        torch.distributed.all_reduce(tensor)
        if tensor.is_cuda:
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - start)
        tensor.fill_(1.0)
    return statistics.median(taken)


def loading_costs(folder: Path, case: Case) -> dict[str, float]:
    """The time to read and collate a batch from a fresh cache in one process, and the bytes of a sample in it."""
    size = replace(
        cache.SIZES["smallest"],
        size_px=case.size_px,
        num_tokens=77,
        text_width=case.shape.text_width,
        num_entries=64,
        batch_size=case.batch_size,
    )
    place = folder / "loading"
    autoencoder, unet = cache.make_networks(size)
    parts = cache.fill(place, autoencoder, unet, size)
    sample = timed(50, partial(cache.make_batch, parts, size))
    num_bytes = sum(path.stat().st_size for path in place.rglob("*") if path.is_file())
    return {"loading_sec": sample.wall_sec, "sample_bytes": num_bytes / size.num_entries}


def storage_rate(folder: Path) -> float:
    """The rate of reading a file that is no longer in memory, in bytes per second."""
    path = folder / "bytes"
    with path.open("wb") as file:
        file.write(os.urandom(2**20) * (FILE_BYTES // 2**20))
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    with path.open("rb", buffering=0) as file:
        start = time.perf_counter()
        while file.read(2**20):
            pass
        return FILE_BYTES / (time.perf_counter() - start)

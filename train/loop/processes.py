"""The processes of a run: which one this is, and the numbers they agree on."""

import os
from functools import lru_cache
from typing import Any

import torch
from accelerate import Accelerator

from ldm.data.cache.fill import Processes

__all__ = [
    "ALONE",
    "Processes",
    "all_reduce_max",
    "num_launched_processes",
    "num_processes_on_this_machine",
    "processes_of",
]

ALONE = Processes()
"""One process without others."""


def processes_of(accelerator: Accelerator) -> Processes:
    """This process and the others, as Accelerate was started."""
    return Processes(accelerator.process_index, accelerator.num_processes, accelerator.wait_for_everyone)


def num_launched_processes() -> int:
    """How many processes the launcher has started, on all machines; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def num_processes_on_this_machine() -> int:
    """How many of them run on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def all_reduce_max(number: int) -> int:
    """The largest of all processes' numbers. Every process must call it.

    The numbers travel between hosts, so no process waits for work queued on its device.
    """
    found = torch.tensor(number)
    world = torch.distributed.group.WORLD
    torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MAX, group=_cpu_group(world))
    return int(found)


@lru_cache(maxsize=1)
def _cpu_group(world: Any) -> Any:
    """A group of all processes for tensors on the CPU: `world` itself if it can."""
    if torch.distributed.get_backend(world) == "gloo":
        return world
    return torch.distributed.new_group(backend="gloo")

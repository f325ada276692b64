"""Devices, number formats and memory."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from ldm.errors import UserError, unknown_name

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Parameters of glibc's `mallopt`."""

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def pick_device(device: str | None = None) -> torch.device:
    """The device with this name; by default a GPU if there is one.

    Raises:
        UserError: torch does not know the device, or it does not exist here.
    """
    if device is None:
        device = (
            "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        )
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"device {device!r} cannot be used ({reason})", "use cpu, or leave it out") from error


def devices_to_serve(device: str | None) -> list[str | None]:
    """The device that is named; else every CUDA device, or None for `pick_device` if there is at most one."""
    num_gpus = torch.cuda.device_count() if device is None else 0
    return [f"cuda:{number}" for number in range(num_gpus)] if num_gpus > 1 else [device]


def pick_dtype(dtype: str | None = None) -> torch.dtype:
    """The dtype with this name, a key of `DTYPES`; float32 by default.

    Raises:
        UserError: the name is unknown.
    """
    if dtype is not None and dtype not in DTYPES:
        raise unknown_name("dtype", dtype, DTYPES)
    return DTYPES[dtype or "float32"]


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether an allocation failed because a device, or the machine, is out of memory."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def free_cached_memory() -> None:
    """Release the GPU memory that torch caches but does not use."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextmanager
def lent(module: nn.Module, device: torch.device) -> Iterator[None]:
    """Inside the block a frozen network is on a device; afterwards it has its own tensors again.

    Nothing of it stays on the device, and nothing is copied back: its own tensors are still there, and those that were
    read from a file without a change of dtype take no memory but the file's pages.
    """
    own = [
        (name, tensor, tensor.data) for name, tensor in [*module.named_parameters(), *module.named_buffers()]
    ]
    module.to(device)
    try:
        yield
    finally:
        for name, tensor, data in own:
            tensor.data = data
            owner, _, last = name.rpartition(".")
            setattr(module.get_submodule(owner), last, tensor)


def keep_freed_memory() -> bool:
    """Make the C library keep the memory of freed tensors for later ones; returns whether that worked.

    By default glibc returns large blocks to the system at once and requests them again, page by page: a seventh of a
    training step on a CPU. It affects the whole process, so only programs call it; peak memory is unchanged.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # another system, or another C library
        return False
    largest_piece, never = 32 * 2**20, 2**31 - 1  # bytes; glibc takes no larger ones
    return bool(mallopt(M_MMAP_THRESHOLD, largest_piece) and mallopt(M_TRIM_THRESHOLD, never))

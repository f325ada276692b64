"""Where a model computes, and in what."""

import ctypes

import torch

from ldm.errors import UserError, unknown_name

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""What glibc's `mallopt` calls them."""

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def pick_device(device: str | None = None) -> torch.device:
    """The device named, or a GPU where there is one.

    Raises:
        UserError: torch does not know the device, or it is not there.
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


def pick_dtype(dtype: str | None = None) -> torch.dtype:
    """The number format named, a key of `DTYPES`; float32 by default.

    Raises:
        UserError: there is no such format.
    """
    if dtype is not None and dtype not in DTYPES:
        raise unknown_name("dtype", dtype, DTYPES)
    return DTYPES[dtype or "float32"]


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether torch says that a device, or the machine, has no room for what it was to allocate."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def free_cached_memory() -> None:
    """Give back what torch keeps of a GPU's memory without using it."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def keep_freed_memory() -> bool:
    """Have the C library of this process keep the memory of freed tensors for the next ones; whether it does.

    By default glibc gives large pieces back to the system at once and fetches them anew, page by page: a seventh of a
    training step on a CPU. For programs, which have a process to themselves; the peak of their memory stays.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # another system, or another C library
        return False
    largest_piece, never = 32 * 2**20, 2**31 - 1  # bytes; glibc takes no larger ones
    return bool(mallopt(M_MMAP_THRESHOLD, largest_piece) and mallopt(M_TRIM_THRESHOLD, never))

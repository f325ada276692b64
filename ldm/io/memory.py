"""The memory that this process may still use, asked before something large begins."""

import resource
from pathlib import Path

from ldm.errors import UserError

SHORT_OF_MEMORY = (
    "Cannot allocate memory",  # the system: ENOMEM
    "failed to map segment",  # the loader of libraries
    "can't allocate memory",  # torch
    "bad_alloc",  # C++
    "can't start new thread",  # Python
    "realloc of size",  # Arrow
    "malloc of size",
)
"""Parts of messages which say that memory is short."""

_CGROUP = Path("/sys/fs/cgroup")


def free_memory_bytes() -> float:
    """Memory that is free now: the computer's, or what a container's limit or `ulimit -v` leaves of it.

    Infinite if the system does not say. Swap space does not count.
    """
    found = [left for left in (_system(), _container(), _address_space()) if left is not None]
    return max(0.0, min(found, default=float("inf")))


def check_memory(needed_bytes: float, what: str, hint: str) -> None:
    """Refuse what cannot fit.

    Args:
        what: needs the memory, for the message.

    Raises:
        UserError: naming both amounts.
    """
    free = free_memory_bytes()
    if needed_bytes > free:
        raise UserError(
            f"{what} needs about {gigabytes(needed_bytes)} of memory, {gigabytes(free)} are free", hint
        )


def memory_fault(error: BaseException) -> UserError | None:
    """The error to report in place of one that says that memory is short; None if it says something else.

    Libraries that do not fit in memory raise ImportError or OSError with the text of the system's loader.
    """
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, MemoryError) or any(part in str(found) for part in SHORT_OF_MEMORY):
            free = gigabytes(free_memory_bytes())
            return UserError(
                f"there is not enough memory ({free} are free)", "close other programs, or raise the limit"
            )
        found = found.__cause__ or found.__context__
    return None


def gigabytes(num_bytes: float) -> str:
    """Such as "1.5 GB"."""
    return f"{num_bytes / 1e9:,.1f} GB"


def _system() -> float | None:
    return _entry(Path("/proc/meminfo"), "MemAvailable:", 1024)


def _container() -> float | None:
    """What is left to the container; file contents that it has in memory can be dropped."""
    try:
        limit, used = ((_CGROUP / name).read_text().strip() for name in ("memory.max", "memory.current"))
    except OSError:
        return None
    if not limit.isdigit() or not used.isdigit():
        return None
    return float(int(limit) - int(used)) + (_entry(_CGROUP / "memory.stat", "inactive_file", 1) or 0.0)


def _address_space() -> float | None:
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    used = _entry(Path("/proc/self/status"), "VmSize:", 1024)
    return None if limit == resource.RLIM_INFINITY or used is None else limit - used


def _entry(file: Path, name: str, unit: int) -> float | None:
    """A number in a file of the system that has a name and a number on each line."""
    try:
        lines = file.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * float(unit) for line in lines if line.split()[:1] == [name]), None)

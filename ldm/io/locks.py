"""The right to write into a folder, which one process holds at a time."""

import fcntl
import json
import os
import weakref
from pathlib import Path

from filelock import FileLock, Timeout

from ldm.errors import UserError
from ldm.io.files import disk_errors
from ldm.io.json_files import parse_json
from ldm.io.opening import open_file, read_bytes

LOCK = "run.lock"
MAX_HOLDER_BYTES = 1000
PATIENCE_SEC = 0.2
"""How long a lock is tried for: `holder` of another process may share it for an instant."""


class FolderLock:
    """The right to write into a folder, which one process holds at a time.

    A lock on `folder/run.lock`, which stays there. The operating system releases it when the process ends, however it
    ends; forked processes (data loader workers, which may outlive it) do not inherit it. It is also released when this
    object is garbage collected. A process can lock a folder that it holds already.

    Raises:
        UserError: another process holds it (the message says which), or the folder is not writable.
        FileNotFoundError: the folder does not exist.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / LOCK
        lock = FileLock(
            path, is_singleton=True, thread_local=False, fallback_to_soft=False, on_acquired=_write_holder
        )
        try:
            with disk_errors(path):
                folder.stat()  # filelock would create a missing folder
                lock.acquire(timeout=PATIENCE_SEC, poll_interval=0.02)
        except Timeout:
            raise UserError(
                f"{folder} is in use by {_holder(path)}",
                "wait until it has finished, or choose another folder",
            ) from None
        self.release = weakref.finalize(self, lock.release)


def _write_holder(handle: int) -> None:
    """Write into a lock file, opened as `handle`, that this process holds it."""
    os.ftruncate(handle, 0)
    os.pwrite(handle, json.dumps({"pid": os.getpid(), "host": os.uname().nodename}).encode(), 0)


def is_lock(path: Path) -> bool:
    """Whether a file is a lock of ours: it names a process, or is empty as before the first use."""
    try:
        text = path.read_text(encoding="utf-8") if path.is_file() and path.stat().st_size < 1000 else "0"
        holder = json.loads(text or "{}")
    except (OSError, ValueError):
        return False
    return isinstance(holder, dict) and holder.keys() <= {"pid", "host"}


def holder(folder: Path) -> str | None:
    """The process that holds a folder, such as "process 12 on host"; None if none does. Nothing is written.

    The lock is shared for an instant, which fails if it is held. `FolderLock` tries for longer than that.
    """
    path = folder / LOCK
    try:
        with open_file(path, MAX_HOLDER_BYTES) as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _holder(path)
    except OSError:  # no lock, or no file system with locks
        return None
    return None


def _holder(path: Path) -> str:
    """The process named in a lock file."""
    try:
        holder = parse_json(read_bytes(path, MAX_HOLDER_BYTES))
        return f"process {holder['pid']} on {holder['host']}"
    except (OSError, ValueError, TypeError, KeyError):
        return "another process"

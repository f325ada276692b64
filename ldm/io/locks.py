"""The right to write into a folder, which one process has at a time."""

import json
import os
import weakref
from pathlib import Path

from ldm.errors import UserError
from ldm.io.files import disk_errors

LOCK = "run.lock"


class FolderLock:
    """The right to write into a folder, which one process has at a time.

    A record lock on `folder/run.lock`: the system takes it back when the process ends, however it ends, and processes
    forked from it (loader workers, which may outlive it) do not have it. It is given back with the object, too. A
    process may take its own lock once more.

    Raises:
        UserError: another process has it, and which; or the folder is not writable.
    """

    def __init__(self, folder: Path) -> None:
        import fcntl

        path = folder / LOCK
        with disk_errors(path):
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        self.release = weakref.finalize(self, os.close, handle)
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            raise UserError(
                f"{folder} is in use by {_holder(path)}", "wait for its end, or choose another folder"
            ) from None
        holder = {"pid": os.getpid(), "host": os.uname().nodename}
        with disk_errors(path):
            os.ftruncate(handle, 0)
            os.pwrite(handle, json.dumps(holder).encode(), 0)


def _holder(path: Path) -> str:
    """The process that wrote itself into a lock file."""
    try:
        holder = json.loads(path.read_text(encoding="utf-8"))
        return f"process {holder['pid']} on {holder['host']}"
    except (OSError, ValueError, TypeError, KeyError):
        return "another process"

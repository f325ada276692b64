"""Temporary files and folders, and removing those that killed processes left behind.

A temporary folder has a lock file beside it, which names its writer and is locked while the writer lives. Only a folder
with such a file is removed: the name alone does not prove that this program made it.
"""

import errno
import fcntl
import json
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from ldm.errors import UserError
from ldm.io.stopping import deferring_signals

PROGRAM = "open-ldm"
LOCK_SUFFIX = ".lock"
_ENDING = r"-[0-9a-f]{8}"
NAME = re.compile(rf"\.(tmp|old)-.+{_ENDING}(\.lock)?", re.DOTALL)
"""The names of temporary files and folders, and of their lock files."""


PLACE_HINT = "free some space, or set TMPDIR to a folder on a disk with room"


@dataclass(frozen=True)
class Temporary:
    """The paths that the writer of one file or folder uses until it is complete.

    Attributes:
        path: where it is written.
        old: where an existing folder is moved until then.
        lock: the lock file of the writer.
    """

    path: Path
    old: Path
    lock: Path


def temporary_in(folder: Path, name: str, key: str | None = None) -> Temporary:
    """Unused temporary paths in `folder` for something that will be called `name`."""
    key = key or uuid.uuid4().hex[:8]
    path = folder / f".tmp-{name}-{key}"
    return Temporary(path, folder / f".old-{name}-{key}", path.with_name(path.name + LOCK_SUFFIX))


@contextmanager
def locked(temporary: Temporary) -> Iterator[None]:
    """Hold the lock file of temporary paths inside the block, and remove it once nothing is left at them."""
    held: list[int] = []
    try:
        with deferring_signals():
            held.append(_create_lock(temporary.lock))
        yield
    finally:
        with deferring_signals():
            for handle in held:
                _release(temporary, handle)


def _create_lock(lock: Path) -> int:
    """Create a lock file, hold it, and write into it whose it is; returns the open file."""
    try:
        handle = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileNotFoundError as error:  # the folder exists: it is a file system such as /proc
        raise OSError(errno.EACCES, error.strerror, str(lock)) from error
    claim(handle)
    # written only now, because a lock file without its content is never taken for that of a dead writer
    writer = {"program": PROGRAM, "pid": os.getpid(), "host": os.uname().nodename}
    try:
        os.write(handle, json.dumps(writer).encode())
    except OSError:  # the disk is full
        lock.unlink()
        os.close(handle)
        raise
    return handle


def _release(temporary: Temporary, handle: int) -> None:
    if not (os.path.lexists(temporary.path) or os.path.lexists(temporary.old)):  # else for `abandoned`
        temporary.lock.unlink(missing_ok=True)
    os.close(handle)


def claim(handle: int) -> None:
    """Mark an open file as being written, for as long as it stays open."""
    with suppress(OSError):  # a file system without locks: what is left there is not removed later
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


def remove_abandoned_files(folder: Path, is_ours: Callable[[str], bool]) -> None:
    """Remove the temporary files in a folder that killed writers left.

    Args:
        is_ours: whether this program writes a file of this name into the folder.
    """
    for path in folder.glob(".tmp-*"):
        name = re.fullmatch(rf"\.tmp-(.+){_ENDING}", path.name, re.DOTALL)
        if name and is_ours(name[1]) and path.is_file() and not path.is_symlink() and not _is_claimed(path):
            path.unlink(missing_ok=True)


def _is_claimed(path: Path) -> bool:
    """Whether a process is writing a file, or cannot be asked."""
    try:
        handle = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(handle)
    return False


def abandoned(folder: Path, name: str) -> list[Temporary]:
    """The temporary paths for `name` in `folder` whose writers were killed."""
    pattern = re.compile(rf"\.tmp-{re.escape(name)}-([0-9a-f]{{8}}){re.escape(LOCK_SUFFIX)}")
    try:
        found = sorted(os.listdir(folder))
    except OSError:
        return []
    keys = [match[1] for entry in found if (match := pattern.fullmatch(entry))]
    return [each for key in keys if _is_dead((each := temporary_in(folder, name, key)).lock)]


def _is_dead(lock: Path) -> bool:
    """Whether a lock file is ours, and its writer no longer holds it."""
    try:
        handle = os.open(lock, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        if os.fstat(handle).st_uid != os.getuid():
            return False
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        writer = json.loads(os.read(handle, 1000))
        return isinstance(writer, dict) and writer.get("program") == PROGRAM
    except (OSError, ValueError):
        return False
    finally:
        os.close(handle)


@contextmanager
def working_folder(purpose: str) -> Iterator[Path]:
    """An empty folder on the system's temporary disk, such as /tmp, that is removed after the block.

    Folders for the same purpose whose processes were killed are removed first.

    Raises:
        UserError: nothing can be written there.
    """
    place, name = temporary_place(), f"ldm-{purpose}"
    for left in abandoned(place, name):
        remove_temporary(left)
    temporary = temporary_in(place, name)
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(temporary))
            stack.callback(remove_whole, temporary.path)
            temporary.path.mkdir(mode=0o700)
        except OSError as error:
            raise UserError(f"{place} cannot be written ({error.strerror})", PLACE_HINT) from error
        yield temporary.path


def remove_whole(folder: Path) -> None:
    """Remove a folder as far as possible; a signal is answered afterwards."""
    with deferring_signals():
        shutil.rmtree(folder, ignore_errors=True)


def temporary_place() -> Path:
    """The system's folder for temporary files.

    Raises:
        UserError: no such folder can be written to.
    """
    try:
        return Path(tempfile.gettempdir())
    except FileNotFoundError as error:
        raise UserError("no folder for temporary files can be written", PLACE_HINT) from error


def remove_temporary(temporary: Temporary) -> None:
    """Remove the temporary folder of a writer that was killed, and its lock file."""
    if not temporary.path.is_symlink():
        remove_whole(temporary.path)
    temporary.lock.unlink(missing_ok=True)

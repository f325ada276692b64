"""Folders that are complete or absent: filled under a temporary name, flushed, and only then moved into place."""

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ldm.errors import UserError
from ldm.io.files import disk_errors, unwritable, write_manifest
from ldm.io.ownership import INDEXES, NOBODYS, listed_files, remove_written
from ldm.io.stopping import deferring_signals
from ldm.io.temporary import (
    NAME,
    Temporary,
    abandoned,
    locked,
    remove_temporary,
    remove_whole,
    temporary_in,
)

NOT_MOVABLE = (errno.EBUSY, errno.EXDEV, errno.EPERM, errno.EACCES)
"""The errors of renaming a mount point, or a folder of another user."""


@contextmanager
def new_folder(dest: Path, *, replace: bool = False, manifest: bool = True) -> Iterator[Path]:
    """A folder to fill. It appears at `dest` when complete, or not at all.

    An existing `dest` is replaced only with `replace`, and only after the new folder has been flushed to the disk. Of
    the old one only what this program wrote is removed: see `ldm.io.ownership.remove_written`. A mount point, which
    cannot be renamed, is filled in place: the file that lists the others comes last. If an earlier call for the same
    `dest` was killed, its leftovers are removed first.

    Args:
        manifest: list the files in `manifest.json`, unless the folder has a list already.

    Raises:
        UserError: `dest` already exists and is not empty, or the disk is full or not writable.
    """
    place = dest.resolve() if dest.is_symlink() else dest
    with disk_errors(dest):
        in_place = _must_fill_in_place(place)
        root = place if in_place else place.parent
        remove_abandoned(place)
        if not replace and is_taken(place):
            raise UserError(f"{dest} exists already", "choose another place or move it away")
        _make_parents(root, dest)
        temporary = temporary_in(root, place.name)
        with locked(temporary):
            try:
                temporary.path.mkdir()
                yield temporary.path
                _open_to_readers(temporary.path)
                if manifest:
                    write_index(temporary.path)
                flush_folder(temporary.path)
                if not replace and is_taken(place):
                    raise UserError(f"{dest} exists by now", "choose another place or move it away")
                _move_into(temporary, place, in_place)
            finally:
                remove_whole(temporary.path)


def replace_folder(made: Path, dest: Path) -> None:
    """Move a finished folder to `dest`, on the same disk, replacing what this program wrote there."""
    remove_abandoned(dest)
    temporary = temporary_in(dest.parent, dest.name)
    with locked(temporary), deferring_signals():
        _swap(Temporary(made, temporary.old, temporary.lock), dest)


def write_index(folder: Path) -> None:
    """Write `manifest.json`, unless the folder lists its files already."""
    if not any((folder / name).exists() for name in INDEXES):
        write_manifest(folder)


def is_taken(dest: Path) -> bool:
    """Whether `dest` exists and is not an empty folder. What file systems put into a folder does not count."""
    if not dest.is_dir():
        return dest.exists()
    return any(not NOBODYS.fullmatch(name) and not NAME.fullmatch(name) for name in os.listdir(dest))


def _make_parents(root: Path, dest: Path) -> None:
    try:
        root.mkdir(parents=True, exist_ok=True)
    except FileNotFoundError as error:
        # the parents exist by now, so it is a file system such as /proc, where no folders can be created
        raise unwritable(dest, error) from error


def _open_to_readers(folder: Path) -> None:
    """Give every file the user's default mode: safetensors creates files that only the owner can read."""
    mask = os.umask(0)
    os.umask(mask)
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(0o666 & ~mask)


# Moving into place


def _move_into(temporary: Temporary, dest: Path, in_place: bool) -> None:
    if not in_place:
        try:
            with deferring_signals():
                return _swap(temporary, dest)
        except OSError as error:
            if error.errno not in NOT_MOVABLE or not dest.is_dir():
                raise
    _fill(temporary, dest)


def _swap(temporary: Temporary, dest: Path) -> None:
    """Move the finished folder into place; an existing one is moved aside first and removed last."""
    existed = os.path.lexists(dest)
    if existed:
        dest.rename(temporary.old)
    try:
        temporary.path.rename(dest)
    except BaseException:
        if existed and not os.path.lexists(dest):
            temporary.old.rename(dest)
        raise
    _flush(dest.parent)
    if existed:
        remove_written(temporary.old, kept=dest)


def _fill(temporary: Temporary, dest: Path) -> None:
    """Move the finished files into a folder that cannot be renamed, and what it held aside. The index comes last."""
    old = temporary_in(dest, dest.name, temporary.path.name[-8:]).old
    try:
        old.mkdir()
        for path in sorted(_entries(dest), key=_index_first):
            path.rename(old / path.name)
        for path in sorted(_entries(temporary.path), key=_index_first, reverse=True):
            shutil.move(path, dest / path.name)
        flush_folder(dest)
    except BaseException:
        with deferring_signals(), suppress(OSError):
            _undo(temporary.path, old, dest)
        raise
    with deferring_signals():
        remove_written(old, kept=dest / "replaced")


def _entries(folder: Path) -> list[Path]:
    names = os.listdir(folder)
    return [folder / name for name in names if not NOBODYS.fullmatch(name) and not NAME.fullmatch(name)]


def _index_first(path: Path) -> tuple[bool, bool, str]:
    return path.name not in INDEXES, path.name != "model_index.json", path.name


def _undo(made: Path, old: Path, dest: Path) -> None:
    """Undo a `_fill` that stopped half-way.

    The list of the old files was moved first, and that of the new ones comes last: if there is one, nothing is amiss.
    """
    if any((dest / name).exists() for name in INDEXES):
        return remove_written(old, kept=dest / "replaced")
    for name in {name.partition("/")[0] for name in listed_files(made) or {}}:
        if not os.path.lexists(made / name) and os.path.lexists(dest / name):
            (dest / name).rename(made / name)
    for path in old.iterdir():
        path.rename(dest / path.name)
    old.rmdir()


# Mount points


def _must_fill_in_place(dest: Path) -> bool:
    """Whether `dest` exists and can only be filled: it is a mount point, or its parent is not writable."""
    return dest.is_dir() and (is_mount(dest) or not os.access(dest.parent, os.W_OK | os.X_OK))


def is_mount(folder: Path) -> bool:
    """Whether something is mounted at `folder`, also a folder of the same disk."""
    if os.path.ismount(folder):
        return True
    try:
        lines = Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines()
    except OSError:
        return False
    mounted = (re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), line.split(" ")[4]) for line in lines)
    return os.path.realpath(folder) in mounted


# What killed writers left


def remove_abandoned(dest: Path) -> None:
    """Remove what killed calls of `new_folder` for `dest` left, and put back what they had moved aside."""
    with deferring_signals():
        _remove_abandoned(dest)


def _remove_abandoned(dest: Path) -> None:
    for left in abandoned(dest.parent, dest.name):
        if os.path.lexists(left.old) and not os.path.lexists(dest):
            left.old.rename(dest)
        elif os.path.lexists(left.old):
            remove_written(left.old, kept=dest)
        elif (dest / left.old.name).is_dir():
            _undo(left.path, dest / left.old.name, dest)
        remove_temporary(left)
    for left in abandoned(dest, dest.name):
        if left.old.is_dir():
            _undo(left.path, left.old, dest)
        remove_temporary(left)


def remove_leftovers(folder: Path) -> None:
    """Remove what a killed writer left in a folder: temporary files, and old folders that it had moved aside.

    An old folder is put back if its replacement never arrived. No other process may be writing there.
    """
    for old in _named_as_ours(folder, "old"):
        dest = folder / old.name.removeprefix(".old-").rpartition("-")[0]
        if not os.path.lexists(dest):
            old.rename(dest)
    for path in _named_as_ours(folder, "old"):
        remove_written(path, kept=path.with_name(path.name.removeprefix(".old-").rpartition("-")[0]))
    for path in _named_as_ours(folder, "tmp"):
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _named_as_ours(folder: Path, kind: str) -> list[Path]:
    """Paths with the names of temporary files and folders; a user's `.old-photos` is not one of them."""
    return [path for path in folder.glob(f".{kind}-*") if NAME.fullmatch(path.name)]


def flush_folder(folder: Path) -> None:
    """Flush every file below `folder`, and the folders themselves, to the disk."""
    for path in [*folder.rglob("*"), folder]:
        _flush(path)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

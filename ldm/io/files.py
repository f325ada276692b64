"""Files that are complete or absent: written to a temporary name, flushed, renamed, and checked against a manifest.

Also the free space on the disk. torch is not imported here, because `ldm doctor` must work where it is broken.
"""

import errno
import hashlib
import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from ldm.errors import UserError
from ldm.io.json_files import read_json
from ldm.io.opening import open_file
from ldm.io.safetensors_header import read_header
from ldm.io.temporary import claim

if TYPE_CHECKING:
    import torch
    from torch import Tensor

MANIFEST = "manifest.json"
ManifestEntry = dict[str, str | int]
"""What a manifest says about a file: `sha256` and `size_bytes`."""

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
UNWRITABLE = (
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.EIO,
)  # fmt: skip


def sha256_file(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hex. Raises OSError, as `open_file` does."""
    with open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


_remembered: dict[tuple[str, int, int, int, int], str] = {}
RACY_NS = 2 * 10**9
"""A file that was changed so shortly before could change again without another timestamp."""


def remembered_sha256(path: Path) -> str:
    """`sha256_file`, read once in a process as long as the file's size and timestamps stay the same."""
    began, status = time.time_ns(), path.stat()
    key = (str(path.resolve()), status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    if key in _remembered:
        return _remembered[key]
    found = sha256_file(path)
    if max(status.st_mtime_ns, status.st_ctime_ns) + RACY_NS < began:
        _remembered[key] = found
    return found


@contextmanager
def disk_errors(path: Path, *, only_full: bool = False) -> Iterator[None]:
    """Turn the errors of a full or unwritable disk into a UserError that names `path`.

    Args:
        only_full: leave all errors but those of a full disk as they are.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        number = _error_number(error)
        if number in FULL:
            raise UserError(f"{path}: the disk is full", "free some space and run again") from error
        if number in UNWRITABLE and not only_full:
            raise unwritable(path, OSError(number, os.strerror(number))) from error
        raise


def _error_number(error: Exception) -> int:
    """The system's number of an error, or 0. safetensors raises its own errors, with the number in their text."""
    if isinstance(error, OSError):
        return error.errno or 0
    match = (
        re.search(r"\(os error (\d+)\)", str(error)) if type(error).__name__ == "SafetensorError" else None
    )
    return int(match[1]) if match else 0


def unwritable(path: Path, error: OSError) -> UserError:
    """The error for a place that cannot be written to."""
    return UserError(f"{path} cannot be written ({error.strerror})", "choose another place")


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file completely or not at all: to a temporary sibling, flushed, then renamed to `path`.

    Raises:
        UserError: the disk is full or the folder is not writable.
    """
    with _new_file(path) as file:
        file.write(data)


def write_new(path: str | os.PathLike[str], data: bytes, *, overwrite: bool = False) -> None:
    """Write a file completely or not at all, and by default only where there is none.

    Raises:
        UserError: `path` exists and `overwrite` is false, the disk is full, or the folder is not writable.
    """
    path = Path(path)
    try:
        if path.is_dir() or (path.exists() and not overwrite):
            raise UserError(f"{path} exists already", "choose another name or move it away")
        write_bytes(path, data)
    except OSError as error:  # a name too long, a file where a folder should be, a broken disk
        raise UserError(f"{path} cannot be written ({error.strerror})", "choose another place") from error


def write_private(path: Path, data: bytes) -> None:
    """Write a new file that only its owner may read, such as a key; its folder likewise, if there is none.

    Raises:
        UserError: the file exists, the disk is full or the folder is not writable.
    """
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())


@contextmanager
def _new_file(path: Path) -> Iterator[BinaryIO]:
    """A file to fill, which replaces `path` once it is complete and flushed to the disk."""
    temporary = path.parent / f".tmp-{path.name}-{uuid.uuid4().hex[:8]}"
    with disk_errors(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                claim(file.fileno())
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except FileNotFoundError as error:  # the parents exist by now: it is a file system such as /proc
            raise unwritable(path, error) from error
        finally:
            temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, completely or not at all."""
    write_bytes(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def read_tensors(path: Path) -> "dict[str, Tensor]":
    """The tensors of a safetensors file, on the CPU.

    Raises:
        UserError: the file is missing, truncated or not a safetensors file.
    """
    with open_tensors(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # it is not a dict


@contextmanager
def open_tensors(path: Path) -> Iterator[Any]:
    """Open a safetensors file with `safe_open`, to read its tensors one by one; its header is checked first.

    Raises:
        UserError: the file is missing, truncated or not a safetensors file.
    """
    from safetensors import SafetensorError, safe_open

    read_header(path)
    try:
        handle = safe_open(path, "pt")
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} is not a valid safetensors file ({error})", "restore the file") from None
    with handle as file:
        yield file


def write_tensors(
    path: Path,
    tensors: "Mapping[str, Tensor]",
    metadata: Mapping[str, str] | None = None,
    *,
    dtype: "torch.dtype | None" = None,
) -> None:
    """Write tensors as safetensors, completely or not at all; the same content always gives the same bytes.

    Tensors that share memory or are strided are stored as separate copies.

    Args:
        metadata: strings for the file's header; see `ldm.io.safetensors_writer.TENSORS_SHA256`.
        dtype: the number format to store floating-point numbers in; by default each tensor's own.

    Raises:
        UserError: a finite number is not finite in `dtype`, or the disk is full or not writable.
    """
    from ldm.io.safetensors_writer import write_safetensors

    with _new_file(path) as file:
        write_safetensors(file, tensors, metadata, dtype)


def write_manifest(folder: Path) -> None:
    """Record the SHA-256 and size in bytes of every file in `folder`. Written last, it marks the folder as complete."""
    write_json(folder / MANIFEST, {str(p.relative_to(folder)): file_entry(p) for p in _files(folder)})


def manifest_fault(folder: Path) -> str | None:
    """What differs between a folder and its manifest, in one line, or None if they agree."""
    path = folder / MANIFEST
    if not path.is_file():
        return f"{path} is missing"
    try:
        entries = read_json(path, dict[str, ManifestEntry])
    except UserError as error:
        return error.what
    for name, entry in entries.items():
        file = folder / name
        if not file.is_file():
            return f"{file} is missing"
        if file_entry(file) != entry:
            return f"{file} has changed since it was written"
    return None


def _files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST)


def file_entry(path: Path) -> ManifestEntry:
    """The SHA-256 and size in bytes of a file, as a manifest lists them."""
    return {"sha256": sha256_file(path), "size_bytes": path.stat().st_size}


def free_bytes(folder: Path) -> int:
    """The free space on the disk that holds a folder, or will hold it once it is created."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(there).free


def check_free_space(folder: Path, num_bytes: int, *, hint: str = "free some space and run again") -> None:
    """Check that the disk has room for `num_bytes` in a folder, which may not exist yet.

    Raises:
        UserError: it has not.
    """
    free = free_bytes(folder)
    if free < num_bytes:
        raise UserError(
            f"{folder}: the disk is full: {num_bytes / 1e6:.1f} MB are needed, {free / 1e6:.1f} MB are free",
            hint,
        )

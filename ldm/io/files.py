"""Files that are whole or absent: written beside, flushed, renamed, and checked by a manifest of hashes."""

import errno
import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldm.errors import UserError
from ldm.io.safetensors_header import read_header

if TYPE_CHECKING:
    from torch import Tensor

MANIFEST = "manifest.json"
MAX_MODEL_JSON_BYTES = 64 * 2**20
"""Of one JSON file in anybody's model; the largest vocabularies take a third of it."""
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
UNWRITABLE = (
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.EIO,
)  # fmt: skip


def sha256_file(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def new_folder(dest: Path, *, replace: bool = False) -> Iterator[Path]:
    """A folder to fill, which appears at `dest` whole or not at all.

    What stands at `dest` is replaced only with `replace`, and only once the new folder is on the disk.

    Raises:
        UserError: `dest` holds something already, or the disk is full or not writable.
    """
    if not replace and is_taken(dest):
        raise UserError(f"{dest} exists already", "choose another place or move it away")
    temporary = dest.parent / f".tmp-{dest.name}-{uuid.uuid4().hex[:8]}"
    with disk_errors(dest):
        try:
            _make(temporary, dest)
            yield temporary
            _open_to_readers(temporary)
            flush_folder(temporary)
            _swap(temporary, dest)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _make(temporary: Path, dest: Path) -> None:
    try:
        temporary.mkdir(parents=True)
    except FileNotFoundError as error:
        # the parents were made or are there: /proc and its like take no folders
        raise _unwritable(dest, error) from error


def is_taken(dest: Path) -> bool:
    """Whether something stands where a new folder is to appear; an empty folder is nothing."""
    return dest.exists() and (not dest.is_dir() or any(dest.iterdir()))


def _open_to_readers(folder: Path) -> None:
    """Give every file the mode that this user's new files have: safetensors writes its own for the owner alone."""
    mask = os.umask(0)
    os.umask(mask)
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(0o666 & ~mask)


def _swap(temporary: Path, dest: Path) -> None:
    """Put the finished folder in place; an older one steps aside first and is removed last."""
    old = dest.parent / f".old-{dest.name}-{uuid.uuid4().hex[:8]}"
    if dest.exists():
        dest.rename(old)
    temporary.rename(dest)
    _flush(dest.parent)
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn a full or unwritable disk into a UserError that names `path`."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise UserError(f"{path}: the disk is full", "free some space and run again") from error
        if error.errno in UNWRITABLE:
            raise _unwritable(path, error) from error
        raise


def _unwritable(path: Path, error: OSError) -> UserError:
    return UserError(f"{path} cannot be written ({error.strerror})", "choose another place")


def remove_leftovers(folder: Path) -> None:
    """Clear away what a killed writer left in a folder: its temporaries, and what had stepped aside for them.

    A folder that had stepped aside for one that then never came is put back. Nothing else may be writing there.
    """
    for old in _named_as_ours(folder, "old"):
        dest = folder / old.name.removeprefix(".old-").rpartition("-")[0]
        if not dest.exists():
            old.rename(dest)
    for path in [*_named_as_ours(folder, "old"), *_named_as_ours(folder, "tmp")]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _named_as_ours(folder: Path, kind: str) -> list[Path]:
    """What `new_folder` and `write_bytes` name so: a user may have an `.old-photos` of his own."""
    return [path for path in folder.glob(f".{kind}-*") if re.search(r"-[0-9a-f]{8}$", path.name)]


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file whole or not at all: a temporary sibling, flushed, then renamed over `path`.

    Raises:
        UserError: the disk is full or the folder is not writable.
    """
    temporary = path.parent / f".tmp-{path.name}-{uuid.uuid4().hex[:8]}"
    with disk_errors(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except FileNotFoundError as error:  # the parents were made: /proc and its like take no files
            raise _unwritable(path, error) from error
        finally:
            temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, whole or not at all."""
    write_bytes(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def read_json(path: Path, *, max_bytes: int | None = None) -> Any:
    """A JSON file's value.

    Raises:
        UserError: the file is missing, unreadable, no JSON, or larger than `max_bytes`.
    """
    try:
        if max_bytes is not None and path.stat().st_size > max_bytes:
            raise UserError(f"{path} has more than {max_bytes:,} bytes", "restore the file")
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist", "the folder is incomplete") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is no readable JSON ({error})", "restore the file") from None


def read_tensors(path: Path) -> "dict[str, Tensor]":
    """The tensors of a safetensors file, on the CPU.

    Raises:
        UserError: the file is missing, truncated or no safetensors file.
    """
    with open_tensors(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # it is no dict


@contextmanager
def open_tensors(path: Path) -> Iterator[Any]:
    """A safetensors file to take tensors from one by one, as `safe_open` gives it, after a look at its header.

    Raises:
        UserError: the file is missing, truncated or no safetensors file.
    """
    from safetensors import SafetensorError, safe_open

    read_header(path)
    try:
        handle = safe_open(path, "pt")
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} is no whole safetensors file ({error})", "restore the file") from None
    with handle as file:
        yield file


def write_tensors(
    path: Path, tensors: "Mapping[str, Tensor]", metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors as safetensors; shared or strided ones are stored as copies of their own.

    Args:
        metadata: text for the file's header.

    Raises:
        UserError: the disk is full or not writable.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    with disk_errors(path):
        try:
            save_file(
                {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()},
                path,
                None if metadata is None else dict(metadata),
            )
        except SafetensorError as error:  # it gives the system's error as text only
            number = re.search(r"\(os error (\d+)\)", str(error))
            if number is None:
                raise
            raise OSError(int(number[1]), os.strerror(int(number[1]))) from error


def write_manifest(folder: Path) -> None:
    """Record the SHA-256 and size in bytes of every file in `folder`; written last, it marks the folder whole."""
    write_json(folder / MANIFEST, {str(p.relative_to(folder)): _entry(p) for p in _files(folder)})


def manifest_fault(folder: Path) -> str | None:
    """What differs between a folder and its manifest, in one line, or None when the folder is whole."""
    path = folder / MANIFEST
    if not path.is_file():
        return f"{path} is missing"
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return f"{path} is unreadable"
    for name, entry in entries.items():
        file = folder / name
        if not file.is_file():
            return f"{file} is missing"
        if _entry(file) != entry:
            return f"{file} has changed since it was written"
    return None


def _files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST)


def _entry(path: Path) -> dict[str, Any]:
    return {"sha256": sha256_file(path), "size_bytes": path.stat().st_size}


def flush_folder(folder: Path) -> None:
    """Force every file below `folder`, and the folders themselves, to the disk."""
    for path in [*folder.rglob("*"), folder]:
        _flush(path)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def free_bytes(folder: Path) -> int:
    """The room on the disk where a folder lies, or will lie once it is made."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(there).free


def check_free_space(folder: Path, num_bytes: int, *, hint: str = "free some space and run again") -> None:
    """Refuse to write `num_bytes` into a folder, there already or not, whose disk has no room for them.

    Raises:
        UserError: it has not.
    """
    free = free_bytes(folder)
    if free < num_bytes:
        raise UserError(
            f"{folder}: the disk is full, {num_bytes / 1e6:.1f} MB are needed and {free / 1e6:.1f} MB free",
            hint,
        )

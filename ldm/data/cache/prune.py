"""Pruning the cache: what was not used for long is removed, oldest first, and never a file that is not the cache's."""

import re
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ldm.data.cache.shards import DAMAGED, DAY_SEC, SHARD_NAME
from ldm.errors import UserError
from ldm.io.files import disk_errors

MODEL_FOLDER = re.compile(r"(moments|prompts)/[0-9a-f]{64}")
CONVERTED = re.compile(r"(\.tmp-)?[0-9a-f]{64}-[0-9]+-[\w.+-]+")
"""A folder below `openvino/`: a converted network, or the remains of one."""
LEFT_BEHIND = re.compile(
    r"\.tmp-((moments|prompts)-[0-9a-f]{32}\.safetensors|facts-[0-9]{20}-[0-9a-f]{8}\.jsonl)-[0-9a-f]{8}"
)
"""Temporary files of processes that were killed while writing."""


@dataclass(frozen=True)
class CacheFile:
    """A file of the cache, or the folder of a converted network."""

    path: Path
    size_bytes: int
    unused_days: float


@dataclass(frozen=True)
class Pruned:
    """What pruning removed, or would remove with `dry_run`, and how much is left."""

    removed: tuple[CacheFile, ...]
    kept_bytes: int

    @property
    def removed_bytes(self) -> int:
        return sum(file.size_bytes for file in self.removed)


def prune(
    folder: Path,
    *,
    older_than_days: float | None = None,
    max_bytes: int | None = None,
    dry_run: bool = False,
) -> Pruned:
    """Remove from a cache what was not used for `older_than_days`, then the oldest entries above `max_bytes`.

    This covers shards and networks converted for another engine. Damaged shards and temporary files of killed processes
    are removed too, after a day. A run that has a removed shard open can still read it.

    Raises:
        UserError: a limit is negative, or the folder is not writable.
    """
    for name, limit in (("older_than_days", older_than_days), ("max_bytes", max_bytes)):
        if limit is not None and limit < 0:
            raise UserError(f"{name} = {limit}", "give a number from 0")
    going = [file for file in _litter(folder) if file.unused_days > 1]
    used = sorted([*_shards(folder), *_converted(folder)], key=lambda file: -file.unused_days)
    kept_bytes = sum(file.size_bytes for file in used)
    for file in used:
        too_old = older_than_days is not None and file.unused_days > older_than_days
        if too_old or (max_bytes is not None and kept_bytes > max_bytes):
            going.append(file)
            kept_bytes -= file.size_bytes
    if not dry_run:
        with disk_errors(folder):
            for file in going:
                _remove(file.path)
    return Pruned(tuple(going), kept_bytes)


def _remove(path: Path) -> None:
    if not path.is_dir():
        path.unlink(missing_ok=True)
        return
    gone = path if path.name.startswith(".tmp-") else path.with_name(f".tmp-{path.name}")
    with suppress(FileNotFoundError):  # another process removed it first
        path.rename(gone)  # so that no process finds half of it
    shutil.rmtree(gone, ignore_errors=True)


def _converted(folder: Path) -> Iterator[CacheFile]:
    """Completely converted networks."""
    yield from (file for file in _folders(folder) if not file.path.name.startswith(".tmp-"))


def _folders(folder: Path) -> Iterator[CacheFile]:
    place = folder / "openvino"
    found = place.iterdir() if place.is_dir() and not place.is_symlink() else ()
    for path in sorted(found):
        if CONVERTED.fullmatch(path.name) and path.is_dir() and not path.is_symlink():
            with suppress(FileNotFoundError):
                size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
                yield CacheFile(path, size, (time.time() - path.stat().st_mtime) / DAY_SEC)


def _shards(folder: Path) -> Iterator[CacheFile]:
    for path in _files(folder):
        if SHARD_NAME.fullmatch(path.name) and path.name.startswith(path.parent.parent.name):
            yield from _cache_file(path)


def _litter(folder: Path) -> Iterator[CacheFile]:
    for path in _files(folder):
        name = path.name.removesuffix(DAMAGED)
        if (name != path.name and SHARD_NAME.fullmatch(name)) or LEFT_BEHIND.fullmatch(path.name):
            yield from _cache_file(path)
    yield from (file for file in _folders(folder) if file.path.name.startswith(".tmp-"))


def _files(folder: Path) -> Iterator[Path]:
    """Every regular file in the cache's own folders; links are not followed."""
    places = [p for p in folder.glob("*/*") if MODEL_FOLDER.fullmatch(p.relative_to(folder).as_posix())]
    for place in [*places, folder / "facts"]:
        if place.is_dir() and not place.is_symlink() and not place.parent.is_symlink():
            yield from (path for path in place.iterdir() if path.is_file() and not path.is_symlink())


def _cache_file(path: Path) -> Iterator[CacheFile]:
    try:
        status = path.stat()
    except FileNotFoundError:
        return  # another process removed it first
    yield CacheFile(path, status.st_size, (time.time() - status.st_mtime) / DAY_SEC)

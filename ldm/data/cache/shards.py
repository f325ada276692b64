"""The shards of the cache: safetensors files that are written once, and verified whenever they are read.

A shard holds up to a few hundred entries with their checksums. Its name is random, so any number of processes can write
at once without overwriting each other. A damaged shard is reported and renamed (`*.damaged`); its good entries are
copied to a new one.
"""

import hashlib
import json
import os
import re
import stat
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm.data.cache.keys import tensor_bytes
from ldm.errors import UserError
from ldm.io.files import write_bytes
from ldm.io.json_files import parse_json
from ldm.io.messages import say_warning
from ldm.io.safetensors_header import TensorEntry, read_header

Parts = dict[str, Tensor]
"""An entry: its tensors by name."""

FORMAT = "open-ldm cache 1"
DAMAGED = ".damaged"
DAY_SEC = 24 * 3600
DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
"""The dtypes that an entry may have, by their names in a safetensors header."""
MISSING_HINT = "run again: it is then encoded"
SHARD_NAME = re.compile(r"(moments|prompts)-[0-9a-f]{32}\.safetensors")


def checksum(key: str, parts: Mapping[str, Tensor]) -> str:
    """SHA-256 of an entry: its key, and the name, dtype, shape and bytes of each of its tensors."""
    digest = hashlib.sha256(key.encode())
    for name, tensor in sorted(parts.items()):
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor_bytes(tensor))
    return digest.hexdigest()


def shard_bytes(kind: str, model_hash: str, entries: Mapping[str, Parts]) -> bytes:
    """A shard as a safetensors file; the tensor `KEY/NAME` belongs to the entry KEY."""
    from ldm.io.safetensors_writer import safetensors_bytes

    assert not any("/" in key for key in entries), "a key has no slash"
    tensors = {
        f"{key}/{name}": part.detach().cpu().contiguous()
        for key, parts in entries.items()
        for name, part in parts.items()
    }
    sums = {key: checksum(key, parts) for key, parts in entries.items()}
    metadata = {"format": FORMAT, "kind": kind, "model": model_hash, "checksums": json.dumps(sums)}
    return safetensors_bytes(tensors, metadata)


class ShardFault(Exception):
    """A file that is not a valid shard of this kind and model."""


MAX_OPEN_FILES = 256
"""Shards that a process holds open; others are opened again by name. Many systems allow 1,024 files, macOS 256."""

_open_files: OrderedDict[Path, int] = OrderedDict()


def _open_file(path: Path) -> int:
    """A handle to read a file by position. Those not used for the longest time are closed.

    Raises:
        ShardFault: it is a pipe, a device or a folder.
        OSError: it is gone or not readable.
    """
    if path in _open_files:
        _open_files.move_to_end(path)
        return _open_files[path]
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # opening a pipe must not wait
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise ShardFault("it is not a regular file")
    _open_files[path] = handle
    while len(_open_files) > MAX_OPEN_FILES:
        _close_file(next(iter(_open_files)))
    return handle


def _close_file(path: Path) -> None:
    handle = _open_files.pop(path, None)
    if handle is not None:
        os.close(handle)


@dataclass
class Shard:
    """A shard. It stays readable when the file is renamed, or removed while it is open.

    Entries are read with `pread`. In a mapped file, a page beyond the end of a file that has shrunk would end the
    process with SIGBUS.
    """

    path: Path
    checksums: dict[str, str]
    tensors: dict[str, dict[str, TensorEntry]]
    begin: int
    used: bool = False

    @classmethod
    def open(cls, path: Path, kind: str, model_hash: str) -> "Shard":
        """Open a shard and read its header.

        Raises:
            ShardFault: it is truncated, not a safetensors file, or of another kind or model.
            OSError: it is gone or not readable.
        """
        handle = _open_file(path)
        try:
            header = read_header(path)
            sums = parse_json(header.metadata.get("checksums", "null"))
        except (UserError, ValueError) as error:
            raise ShardFault(getattr(error, "what", str(error))) from None
        head = header.metadata
        if (head.get("format"), head.get("kind"), head.get("model")) != (FORMAT, kind, model_hash):
            raise ShardFault("it was written for something else")
        tensors: dict[str, dict[str, TensorEntry]] = {}
        for name, entry in header.tensors.items():
            key, _, part = name.partition("/")
            tensors.setdefault(key, {})[part] = entry
        known = all(entry.dtype in DTYPES for entry in header.tensors.values())
        if not isinstance(sums, dict) or sums.keys() != tensors.keys() or not known:
            raise ShardFault("its header is damaged")
        return cls(path, sums, tensors, 8 + int.from_bytes(os.pread(handle, 8, 0), "little"))

    def read(self, key: str) -> Parts | None:
        """An entry; None if it is not what it was when it was written, or the file is gone or shorter."""
        try:
            handle = _open_file(self.path)
            parts = {name: self._tensor(handle, entry) for name, entry in self.tensors[key].items()}
        except (OSError, ShardFault):
            return None
        if checksum(key, parts) != self.checksums[key]:
            return None
        self._note_use()
        return parts

    def _tensor(self, handle: int, entry: TensorEntry) -> Tensor:
        num_bytes = entry.end - entry.begin
        data = bytearray(os.pread(handle, num_bytes, self.begin + entry.begin))
        if len(data) < num_bytes:
            raise ShardFault("it is shorter than it was")
        dtype = DTYPES[entry.dtype]
        flat = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
        return flat.reshape(entry.shape)

    def _note_use(self) -> None:
        """Set the file's time to that of its last use, to within a day, for `prune`."""
        if self.used:
            return
        self.used = True
        try:
            if time.time() - os.stat(self.path).st_mtime > DAY_SEC:
                os.utime(self.path)
        except OSError:
            pass  # a read-only cache, or a shard that was renamed


class ShardStore:
    """All entries of one kind for one network, in a folder of shards. Picklable: the copy opens the shards again.

    Args:
        root: the cache's folder.
        kind: `moments` or `prompts`.
        model_hash: of the network that made the entries.
        on_damage: called with one line for every damaged shard and entry.

    Attributes:
        encode_again: called with the key of an entry that was lost, returns it and those encoded together with it. Not
            pickled: it needs the network.
    """

    def __init__(
        self, root: Path, kind: str, model_hash: str, on_damage: Callable[[str], None] = say_warning
    ) -> None:
        self.root, self.kind, self.model_hash, self.on_damage = Path(root), kind, model_hash, on_damage
        self.folder = self.root / kind / model_hash
        self._shards: dict[Path, Shard] = {}
        self._where: dict[str, Shard] = {}
        self._unusable: set[Path] = set()
        self._unwritten: dict[str, Parts] = {}
        self.encode_again: Callable[[str], Mapping[str, Parts]] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return ShardStore, (self.root, self.kind, self.model_hash, self.on_damage)

    def __contains__(self, key: str) -> bool:
        """Whether there is an entry, verified or not."""
        return key in self._where

    def refresh(self) -> None:
        """Open the shards that were written since the last call. Those already open stay open."""
        for path in sorted(self.folder.glob(f"{self.kind}-*.safetensors")):
            if path in self._shards or path in self._unusable or not SHARD_NAME.fullmatch(path.name):
                continue
            try:
                self._add(Shard.open(path, self.kind, self.model_hash))
            except FileNotFoundError:
                pass  # pruned or renamed by another process
            except ShardFault as fault:
                self.on_damage(f"{path} is not a valid shard ({fault}); it is renamed to *{DAMAGED}")
                self._rename(path)
            except OSError as error:
                self._unusable.add(path)
                self.on_damage(f"{path} cannot be read ({error.strerror})")

    def get(self, key: str) -> Parts | None:
        """An entry, verified; None if there is no valid one."""
        while shard := self._where.get(key):
            parts = shard.read(key)
            if parts is not None:
                return parts
            self.on_damage(f"{shard.path}: entry {key} is damaged")
            self._forget(shard, [key])
            self._set_aside(shard)
        return None

    def read(self, key: str) -> Parts | None:
        """An entry, verified. One that was lost is encoded again; None if that cannot be done here."""
        if key not in self:
            self.refresh()
        parts = self.get(key) or self._unwritten.get(key)
        if parts is None and self.encode_again is not None:
            again = {k: p for k, p in self.encode_again(key).items() if k not in self}
            parts = again[key]
            try:
                self.write(again)
            except UserError:  # a full disk or a read-only cache
                self._unwritten |= again
        return parts

    def write(self, entries: Mapping[str, Parts]) -> None:
        """Write entries as one new shard, atomically.

        Raises:
            UserError: the disk is full or the folder is not writable.
        """
        if not entries:
            return
        path = self.folder / f"{self.kind}-{uuid.uuid4().hex}.safetensors"
        write_bytes(path, shard_bytes(self.kind, self.model_hash, entries))
        self._add(Shard.open(path, self.kind, self.model_hash))

    def _add(self, shard: Shard) -> None:
        self._shards[shard.path] = shard
        for key in shard.checksums:
            self._where.setdefault(key, shard)

    def _forget(self, shard: Shard, keys: Iterable[str]) -> None:
        """Stop using `shard` for `keys`; another shard may have them too."""
        for key in list(keys):
            del shard.checksums[key]
            others = (other for other in self._shards.values() if key in other.checksums)
            if (other := next(others, None)) is None:
                del self._where[key]
            else:
                self._where[key] = other

    def _set_aside(self, shard: Shard) -> None:
        """Rename a shard with a damaged entry, after copying its good entries to another."""
        read = {key: shard.read(key) for key in shard.checksums}
        bad = [key for key, parts in read.items() if parts is None]
        if bad:
            self.on_damage(f"{shard.path}: {len(bad)} more entries are damaged")
        self._forget(shard, bad)
        try:
            self.write({key: parts for key, parts in read.items() if parts is not None})
        except UserError:
            return  # a read-only cache: the good entries are used where they are
        if self._rename(shard.path):
            self._shards.pop(shard.path)
            self._forget(shard, shard.checksums)

    def _rename(self, path: Path) -> bool:
        self._unusable.add(path)
        _close_file(path)
        try:
            path.rename(path.with_name(path.name + DAMAGED))
        except FileNotFoundError:
            pass  # another process renamed it
        except OSError:
            return False
        return True

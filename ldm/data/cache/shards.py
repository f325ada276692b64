"""The shards of the cache: safetensors files that are written once, memory-mapped, and verified when read.

A shard holds up to a few hundred entries with their checksums. Its name is random, so any number of processes can write
at once without overwriting each other. A damaged shard is reported and renamed (`*.damaged`); its good entries are
copied to a new one.
"""

import hashlib
import json
import os
import re
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from ldm.data.cache.keys import tensor_bytes
from ldm.errors import UserError
from ldm.io.files import write_bytes
from ldm.io.json_files import parse_json
from ldm.io.opening import check_file

Parts = dict[str, Tensor]
"""An entry: its tensors by name."""

FORMAT = "open-ldm cache 1"
DAMAGED = ".damaged"
DAY_SEC = 24 * 3600
MISSING_HINT = "run again: it is then encoded"
SHARD_NAME = re.compile(r"(moments|prompts)-[0-9a-f]{32}\.safetensors")


def report_damage(message: str) -> None:
    """Print a warning to stderr."""
    print(f"warning: {message}", file=sys.stderr)


def checksum(key: str, parts: Mapping[str, Tensor]) -> str:
    """SHA-256 of an entry: its key, and the name, dtype, shape and bytes of each of its tensors."""
    digest = hashlib.sha256(key.encode())
    for name, tensor in sorted(parts.items()):
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor_bytes(tensor))
    return digest.hexdigest()


def shard_bytes(kind: str, model_hash: str, entries: Mapping[str, Parts]) -> bytes:
    """A shard as a safetensors file; the tensor `KEY/NAME` belongs to the entry KEY."""
    from safetensors.torch import save

    assert not any("/" in key for key in entries), "a key has no slash"
    tensors = {
        f"{key}/{name}": part.detach().cpu().contiguous()
        for key, parts in entries.items()
        for name, part in parts.items()
    }
    sums = {key: checksum(key, parts) for key, parts in entries.items()}
    return save(tensors, {"format": FORMAT, "kind": kind, "model": model_hash, "checksums": json.dumps(sums)})


class ShardFault(Exception):
    """A file that is not a valid shard of this kind and model."""


@dataclass
class Shard:
    """An open shard. It stays readable when the file is renamed or removed."""

    path: Path
    handle: Any
    checksums: dict[str, str]
    names: dict[str, list[str]]
    verified: set[str] = field(default_factory=set)
    used: bool = False

    @classmethod
    def open(cls, path: Path, kind: str, model_hash: str) -> "Shard":
        """Map a shard into memory and read its header.

        Raises:
            ShardFault: it is truncated, not a safetensors file, or of another kind or model.
            OSError: it is gone or not readable.
        """
        from safetensors import SafetensorError, safe_open

        check_file(path)
        try:
            handle: Any = safe_open(path, "pt")
            head = handle.metadata() or {}
            sums = parse_json(head.get("checksums", "null"))
        except (SafetensorError, ValueError) as error:
            raise ShardFault(str(error)) from None
        if (head.get("format"), head.get("kind"), head.get("model")) != (FORMAT, kind, model_hash):
            raise ShardFault("it was written for something else")
        names: dict[str, list[str]] = {}
        for name in handle.keys():  # noqa: SIM118  # not a mapping
            names.setdefault(name.partition("/")[0], []).append(name)
        if not isinstance(sums, dict) or sums.keys() != names.keys():
            raise ShardFault("its header is damaged")
        return cls(path, handle, sums, names)

    def read(self, key: str) -> Parts | None:
        """A copy of an entry; None if its checksum does not match."""
        parts = {name.partition("/")[2]: self.handle.get_tensor(name).clone() for name in self.names[key]}
        if key not in self.verified:
            if checksum(key, parts) != self.checksums[key]:
                return None
            self.verified.add(key)
        self._note_use()
        return parts

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
    """

    def __init__(
        self, root: Path, kind: str, model_hash: str, on_damage: Callable[[str], None] = report_damage
    ) -> None:
        self.root, self.kind, self.model_hash, self.on_damage = Path(root), kind, model_hash, on_damage
        self.folder = self.root / kind / model_hash
        self._shards: dict[Path, Shard] = {}
        self._where: dict[str, Shard] = {}
        self._unusable: set[Path] = set()

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
        """An entry, verified when this process first reads it; None if there is no valid one."""
        while shard := self._where.get(key):
            parts = shard.read(key)
            if parts is not None:
                return parts
            self.on_damage(f"{shard.path}: entry {key} is damaged")
            self._forget(shard, [key])
            self._set_aside(shard)
        return None

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
        for key in bad:
            self.on_damage(f"{shard.path}: entry {key} is damaged")
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
        try:
            path.rename(path.with_name(path.name + DAMAGED))
        except FileNotFoundError:
            pass  # another process renamed it
        except OSError:
            return False
        return True

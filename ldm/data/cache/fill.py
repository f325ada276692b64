"""Filling the cache, shared among all processes and written shard by shard.

The batches depend only on what is wanted, never on what the cache already has or on the number of processes, and a
batch is encoded as a whole or not at all. So a cache filled by four processes, or killed and resumed, has the same
bits.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from ldm.data.cache.shards import SHARD_NAME, Parts, ShardStore
from ldm.errors import UserError
from ldm.io.files import check_free_space
from ldm.io.temporary import remove_abandoned_files

MAX_SHARD_ENTRIES = 256
MAX_SHARD_BYTES = 64 * 2**20
MAX_SHARD_SEC = 60.0
"""A shard is written when it reaches one of these; a killed fill loses no more than that."""
SPARE_BYTES = 64 * 2**20
"""Free disk space that filling leaves."""


class Keyed(Protocol):
    """Something that the cache shall hold."""

    @property
    def key(self) -> str: ...


Item = TypeVar("Item", bound=Keyed)
Encode = Callable[[Iterable[Sequence[Item]]], Iterator[Sequence[Parts]]]
"""Batches of items -> for each batch in order, the tensors of each of its entries in order."""


@dataclass(frozen=True)
class Processes:
    """This process among all that fill the cache, and how it waits for the others."""

    rank: int = 0
    num_processes: int = 1
    barrier: Callable[[], None] = lambda: None

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes what is written once."""
        return self.rank == 0


@dataclass(frozen=True)
class Filled:
    """What this process did to fill the cache.

    Attributes:
        num_found: entries of its share that the cache already had, verified.
        num_encoded: entries that it encoded and wrote.
        num_bytes: size of the entries it wrote.
    """

    num_found: int
    num_encoded: int
    num_bytes: int


def fill_store(
    store: ShardStore,
    wanted: Sequence[Item],
    encode: Encode[Item],
    *,
    batch_size: int,
    processes: Processes,
    on_progress: Callable[[int], None],
) -> Filled:
    """Encode the entries of `wanted` that `store` lacks; afterwards every process can read all of them.

    Every process must pass the same `wanted`. Existing entries of this process's share are verified.

    Raises:
        UserError: the disk is full or not writable, or entries are still missing after the barrier.
    """
    batches = batches_of(wanted, batch_size)
    unique = [item for batch in batches for item in batch]
    mine = batches[processes.rank :: processes.num_processes]
    store.refresh()
    lacking = [batch for batch in mine if [item for item in batch if store.get(item.key) is None]]
    writer = ShardWriter(store, sum(item.key not in store for item in unique))
    num_found = sum(item.key in store for batch in mine for item in batch)
    on_progress(num_found)
    try:
        for batch, encoded in zip(lacking, encode(lacking), strict=True):
            writer.add({i.key: parts for i, parts in zip(batch, encoded, strict=True) if i.key not in store})
            on_progress(num_found + writer.num_entries)
    finally:
        writer.flush()
    processes.barrier()
    store.refresh()
    _check_complete(store, unique)
    return Filled(num_found, writer.num_entries, writer.num_bytes)


def batches_of(wanted: Sequence[Item], batch_size: int) -> list[list[Item]]:
    """What is encoded together: each entry once, in order."""
    unique = list({item.key: item for item in wanted}.values())
    return [unique[start : start + batch_size] for start in range(0, len(unique), batch_size)]


def encode_again(
    wanted: Callable[[], Sequence[Item]], encode: Encode[Item], batch_size: int, key: str
) -> dict[str, Parts]:
    """The entry of `key` and those it was first encoded with, so that it has the same bits as before.

    Args:
        wanted: returns what the cache was filled with; it is not kept in memory.
    """
    batch = next(b for b in batches_of(wanted(), batch_size) if any(item.key == key for item in b))
    encoded = next(iter(encode([batch])))
    return {item.key: parts for item, parts in zip(batch, encoded, strict=True)}


class ShardWriter:
    """Collects entries and writes them in shards of bounded size.

    Args:
        num_lacking: entries that all processes together will write, to check for enough disk space.
    """

    def __init__(self, store: ShardStore, num_lacking: int) -> None:
        self.store, self.num_lacking = store, num_lacking
        self.num_entries = self.num_bytes = 0
        self._pending: dict[str, Parts] = {}
        self._pending_bytes, self._since = 0, time.monotonic()

    def add(self, entries: dict[str, Parts]) -> None:
        """Add the entries of one batch; write a shard when there are enough."""
        size = sum(part.nbytes for parts in entries.values() for part in parts.values())
        if not self.num_entries and entries:
            needed = self.num_lacking * size // len(entries) + SPARE_BYTES
            remove_abandoned_files(self.store.folder, lambda name: SHARD_NAME.fullmatch(name) is not None)
            hint = "free some space (`ldm data prune`), or set cache.folder to another disk"
            check_free_space(self.store.root, needed, hint=hint)
        self._pending |= entries
        self._pending_bytes += size
        self.num_entries += len(entries)
        self.num_bytes += size
        if (
            len(self._pending) >= MAX_SHARD_ENTRIES
            or self._pending_bytes >= MAX_SHARD_BYTES
            or time.monotonic() - self._since > MAX_SHARD_SEC
        ):
            self.flush()

    def flush(self) -> None:
        """Write the pending entries, except those that another run has written in the meantime."""
        pending, self._pending = self._pending, {}
        self._pending_bytes, self._since = 0, time.monotonic()
        self.store.refresh()
        self.store.write({key: parts for key, parts in pending.items() if key not in self.store})


def _check_complete(store: ShardStore, wanted: Sequence[Keyed]) -> None:
    missing = sum(item.key not in store for item in wanted)
    if missing:
        raise UserError(
            f"{missing} of {len(wanted)} entries are missing from {store.folder} after it was filled",
            "put cache.folder on a disk that all processes share",
        )

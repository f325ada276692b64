"""The batches of an epoch: pure functions of (seed, epoch, position).

All samples of a batch are from one bucket, so their images have the same size. In an epoch each sample is in exactly
one batch; the last batch of a bucket may be smaller. Nothing depends on the rank, on the number of processes or on
earlier draws, so a resumed run sees the same batches as an uninterrupted one.

There are two orders. In the shuffled one, a sample that is removed moves all others. In the keyed one, a sample's place
depends only on its id, so without it the batches before its place stay the same (`ldm forget`).
"""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from ldm import noise

OrderName = Literal["shuffled", "keyed"]


class SampleKey(NamedTuple):
    """One sample in one epoch, and its weight in the loss."""

    epoch: int
    sample_index: int
    weight: float = 1.0


def members(bucket_of: Sequence[Hashable]) -> dict[Hashable, list[int]]:
    """The sample indices of each bucket, sorted by bucket name."""
    found: dict[Hashable, list[int]] = {bucket: [] for bucket in sorted(set(bucket_of), key=str)}
    for index, bucket in enumerate(bucket_of):
        found[bucket].append(index)
    return found


def steps_per_epoch(bucket_of: Sequence[Hashable], global_batch_size: int) -> int:
    """Optimizer steps per epoch, in which each sample is seen exactly once; a bucket's last batch may be smaller."""
    return sum(-(-len(indices) // global_batch_size) for indices in members(bucket_of).values())


def epoch_batches(
    epoch: int, *, seed: int, bucket_of: Sequence[Hashable], global_batch_size: int
) -> list[list[SampleKey]]:
    """The global batches of an epoch, in order: each bucket shuffled and cut, then the batches shuffled."""
    batches: list[list[SampleKey]] = []
    buckets = members(bucket_of)
    for bucket, indices in buckets.items():
        order = noise.permutation(len(indices), seed, epoch, "order", str(bucket))
        keys = [SampleKey(epoch, indices[i]) for i in order]
        batches += [
            keys[start : start + global_batch_size] for start in range(0, len(keys), global_batch_size)
        ]
    if len(buckets) == 1:
        return batches
    return [batches[i] for i in noise.permutation(len(batches), seed, epoch, "batches")]


def keyed_batches(
    epoch: int, *, seed: int, bucket_of: Sequence[Hashable], global_batch_size: int, sample_ids: Sequence[str]
) -> list[list[SampleKey]]:
    """The global batches of an epoch, in order: each bucket sorted by a hash of the ids and cut.

    The batches of all buckets are sorted by the hash of their first sample. Without a sample, the batches that come
    before the one that has it stay the same, and so do those of other buckets among themselves.
    """
    places = [noise.key_to_seed(seed, epoch, sample_id, "order") for sample_id in sample_ids]

    def place(index: int) -> tuple[int, str]:
        return places[index], sample_ids[index]

    batches: list[list[int]] = []
    for indices in members(bucket_of).values():
        order = sorted(indices, key=place)
        batches += [order[i : i + global_batch_size] for i in range(0, len(order), global_batch_size)]
    batches.sort(key=lambda batch: place(batch[0]))
    return [[SampleKey(epoch, index) for index in batch] for batch in batches]


def share_of(batch: Sequence[SampleKey], rank: int, num_processes: int) -> list[SampleKey]:
    """A rank's share of a global batch. A rank that would get no samples gets one of weight zero."""
    return list(batch[rank::num_processes]) or [batch[0]._replace(weight=0.0)]


@dataclass(frozen=True)
class BatchOrder:
    """The batches of one rank from `start_step` to `num_steps`, one per optimizer step.

    Attributes:
        bucket_of: the bucket of each sample, such as its size.
        sample_ids: of each sample, for the keyed order; None for the shuffled one.
    """

    seed: int
    bucket_of: Sequence[Hashable]
    global_batch_size: int
    start_step: int
    num_steps: int
    rank: int = 0
    num_processes: int = 1
    sample_ids: Sequence[str] | None = None

    def __len__(self) -> int:
        return max(0, self.num_steps - self.start_step)

    def __iter__(self) -> Iterator[list[SampleKey]]:
        per_epoch = steps_per_epoch(self.bucket_of, self.global_batch_size)
        known, batches = -1, list[list[SampleKey]]()
        for step in range(self.start_step, self.num_steps):
            epoch, position = divmod(step, per_epoch)
            if epoch != known:
                known, batches = epoch, self.epoch(epoch)
            yield share_of(batches[position], self.rank, self.num_processes)

    def epoch(self, number: int) -> list[list[SampleKey]]:
        """The global batches of an epoch."""
        seed, buckets, size = self.seed, self.bucket_of, self.global_batch_size
        if self.sample_ids is None:
            return epoch_batches(number, seed=seed, bucket_of=buckets, global_batch_size=size)
        ids = self.sample_ids
        return keyed_batches(number, seed=seed, bucket_of=buckets, global_batch_size=size, sample_ids=ids)

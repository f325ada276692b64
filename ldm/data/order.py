"""The batches of an epoch: pure functions of (seed, epoch, position).

All samples of a batch are from one bucket, so their images have the same size. In an epoch each sample is in exactly
one batch; the last batch of a bucket may be smaller. Nothing depends on the rank, on the number of processes or on
earlier draws, so a resumed run sees the same batches as an uninterrupted one.
"""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ldm import noise


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


def share_of(batch: Sequence[SampleKey], rank: int, num_processes: int) -> list[SampleKey]:
    """A rank's share of a global batch. A rank that would get no samples gets one of weight zero."""
    return list(batch[rank::num_processes]) or [batch[0]._replace(weight=0.0)]


@dataclass(frozen=True)
class BatchOrder:
    """The batches of one rank from `start_step` to `num_steps`, one per optimizer step.

    Attributes:
        bucket_of: the bucket of each sample, such as its size.
    """

    seed: int
    bucket_of: Sequence[Hashable]
    global_batch_size: int
    start_step: int
    num_steps: int
    rank: int = 0
    num_processes: int = 1

    def __len__(self) -> int:
        return max(0, self.num_steps - self.start_step)

    def __iter__(self) -> Iterator[list[SampleKey]]:
        per_epoch = steps_per_epoch(self.bucket_of, self.global_batch_size)
        known, batches = -1, list[list[SampleKey]]()
        for step in range(self.start_step, self.num_steps):
            epoch, position = divmod(step, per_epoch)
            if epoch != known:
                known, batches = epoch, self._epoch(epoch)
            yield share_of(batches[position], self.rank, self.num_processes)

    def _epoch(self, epoch: int) -> list[list[SampleKey]]:
        return epoch_batches(
            epoch, seed=self.seed, bucket_of=self.bucket_of, global_batch_size=self.global_batch_size
        )

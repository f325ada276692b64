"""Samples streamed from shards, without a pass over the data before the first step.

In each epoch the shards are shuffled, then the samples inside each shard, which is opened only when it is needed. All
samples of a batch are from one shard and one bucket; the last batch of a bucket in a shard may be smaller. So each
sample is seen exactly once, the order is a pure function of (seed, epoch, contents of the shards) and the same for any
number of processes, and three numbers describe where a run is. The price is one smaller batch for each bucket of each
shard, so shards should hold many times `global_batch_size` samples.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from torch.utils.data import Dataset

from ldm import noise
from ldm.data.batches import LatentSamples, read_inputs, read_pixels
from ldm.data.order import SampleKey, epoch_batches, share_of
from ldm.data.prepare import BucketedSample
from ldm.data.sample import NO_INPUTS, TaskInputs
from ldm.data.stream_shards import OpenShard, Shard, shards_hash
from ldm.errors import UserError


class Position(NamedTuple):
    """Where in its stream a run is.

    Attributes:
        shard: position in the epoch's order of the shards, not the shard's number.
        batch: index of the next batch in the shard; the number of its batches when the shard is done.
        contents: the shard's hash, which a resumed run must find again; "" before its first batch.
    """

    epoch: int = 0
    shard: int = 0
    batch: int = 0
    contents: str = ""


START = Position()


class Turn(NamedTuple):
    """A sample in an epoch and its weight. It holds the sample itself, for there is no list of all samples."""

    epoch: int
    placed: BucketedSample
    weight: float = 1.0


def shard_order(num_shards: int, *, seed: int, epoch: int) -> list[int]:
    """The numbers of the shards in the order of an epoch."""
    return noise.permutation(num_shards, seed, epoch, "shards")


def shard_batches(
    placed: Sequence[BucketedSample], shard_id: str, *, seed: int, epoch: int, global_batch_size: int
) -> list[list[SampleKey]]:
    """The global batches of a shard in an epoch, each of one bucket."""
    return epoch_batches(
        epoch,
        seed=noise.key_to_seed(seed, shard_id, "shard"),
        bucket_of=[one.size for one in placed],
        global_batch_size=global_batch_size,
    )


@dataclass(frozen=True)
class ShardStream:
    """The endless sequence of batches of one rank, epoch after epoch.

    Attributes:
        open: reads a shard. Every process calls it for the same shards in the same order.
        reached: called with each opened shard before its first batch.
    """

    shards: Sequence[Shard]
    open: Callable[[Shard], OpenShard]
    seed: int
    global_batch_size: int
    rank: int = 0
    num_processes: int = 1
    reached: Callable[[OpenShard], None] = lambda _: None

    def batches(self, start: Position = START) -> Iterator[tuple[Position, list[Turn]]]:
        """Each batch from `start` on, with the position from which a run resumes after that batch.

        Raises:
            UserError: a shard cannot be read or has changed since `start` was saved, or no shard has a usable sample.
        """
        while True:
            num_batches = 0
            for position, turns in self._epoch(start):
                num_batches += 1
                yield position, turns
            if not num_batches and start[1:3] == (0, 0):
                raise UserError("no sample of any shard can be used", "see data_report.json for the reasons")
            start = Position(start.epoch + 1)

    def _epoch(self, start: Position) -> Iterator[tuple[Position, list[Turn]]]:
        order = shard_order(len(self.shards), seed=self.seed, epoch=start.epoch)
        for place in range(start.shard, len(order)):
            first = start if place == start.shard else Position(start.epoch, place)
            yield from self._shard(self.shards[order[place]], first)

    def _shard(self, shard: Shard, start: Position) -> Iterator[tuple[Position, list[Turn]]]:
        found = self.open(shard)
        if start.contents not in ("", found.contents):
            raise changed(shard)
        self.reached(found)
        batches = shard_batches(
            found.placed,
            shard.shard_id,
            seed=self.seed,
            epoch=start.epoch,
            global_batch_size=self.global_batch_size,
        )
        for number in range(start.batch, len(batches)):
            keys = share_of(batches[number], self.rank, self.num_processes)
            turns = [Turn(key.epoch, found.placed[key.sample_index], key.weight) for key in keys]
            yield start._replace(batch=number + 1, contents=found.contents), turns


def changed(shard: Shard) -> UserError:
    """The error for a shard that has changed."""
    return UserError(
        f"{shard.path} has changed since this run first read it",
        "put the old file back, or use `ldm train CONFIG --fork NEW_DIR` for a new run from the weights",
    )


class StreamOrder:
    """The batches of a run, one per step, from its current step to the last.

    Iterating yields this rank's share. A loader asks for batches ahead of the steps; `state_after` knows for each step
    where to resume after it.

    Args:
        saved: what `state_after` returned when `start_step` was reached; empty for a new run.

    Raises:
        UserError: these are not the shards that the run began with.
    """

    def __init__(
        self, stream: ShardStream, start_step: int, num_steps: int, saved: Mapping[str, Any]
    ) -> None:
        self.stream, self.start_step, self.num_steps = stream, start_step, num_steps
        self.shards_hash = shards_hash(stream.shards)
        if saved and saved["shards"] != self.shards_hash:
            raise UserError(
                f"the {len(stream.shards)} shards are not the ones that this run began with",
                "put the old ones back, or use `ldm train CONFIG --fork NEW_DIR` for a new run from the weights",
            )
        names = [name for name in Position._fields if name in saved]
        self._after = {start_step: Position(**{name: saved[name] for name in names})}

    def __iter__(self) -> Iterator[list[Turn]]:
        batches = self.stream.batches(self._after[self.start_step])
        for step in range(self.start_step, self.num_steps):
            self._after[step + 1], turns = next(batches)
            yield turns

    def state_after(self, step: int) -> dict[str, Any]:
        """Where the stream is after `step` steps, as plain values for the checkpoint. Earlier steps are forgotten."""
        for earlier in [known for known in self._after if known < step]:
            del self._after[earlier]
        return {**self._after[step]._asdict(), "shards": self.shards_hash}


@dataclass(frozen=True)
class StreamedSamples(Dataset[dict[str, Any]]):
    """The items of a stream's batches; images are decoded when they are needed.

    Attributes:
        like: a data set without samples, whose settings are used.
        inputs: the images and texts that a task needs.
    """

    like: LatentSamples
    inputs: TaskInputs = NO_INPUTS

    def __getitem__(self, turn: Turn) -> dict[str, Any]:
        one = [turn.placed]
        samples = replace(
            self.like,
            placed=one,
            read=read_pixels(one),
            kind="pixel_values",
            images={image.key: read_inputs(one, image) for image in self.inputs.images},
            texts=self.inputs.texts,
        )
        return samples[SampleKey(turn.epoch, 0, turn.weight)]

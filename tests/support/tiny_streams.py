"""Tiny shards for the tests of streaming: parquet files and tars of grey images with two aspect ratios."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from ldm.data.prepare import DataSettings
from ldm.data.stream_shards import OpenShard, Shard, list_shards, open_shard
from ldm.data.streaming import START, Position, ShardStream, Turn
from tests.support.tiny_sources import parquet, png, tar

SIZES = [(16, 16), (32, 16)]
NOT_AN_IMAGE = b"not an image"
Batches = Iterator[tuple[Position, list[Turn]]]


def picture(number: int) -> bytes:
    """A different image for each number; every third is twice as wide as high."""
    return png(number, SIZES[number % 3 == 2])


def write_parquet(path: Path, numbers: Sequence[int], bad: Sequence[int] = ()) -> Path:
    """A shard with a row for each number; those in `bad` contain no valid image."""
    images = [NOT_AN_IMAGE if number in bad else picture(number) for number in numbers]
    return parquet(path, {"image": images, "text": [f"grey {number}" for number in numbers]})


def write_tar(path: Path, numbers: Sequence[int]) -> Path:
    """The same in a tar."""
    members: dict[str, Any] = {}
    for number in numbers:
        members |= {f"{number}.png": picture(number), f"{number}.txt": f"grey {number}"}
    return tar(path, members)


def write_shards(folder: Path) -> Path:
    """Four parquet shards with 7, 1, 5 and 4 samples: an epoch is eight batches of at most four, by bucket."""
    for shard, numbers in enumerate((range(7), range(7, 8), range(10, 15), range(20, 24))):
        write_parquet(folder / f"{shard}.parquet", numbers)
    return folder


def data_settings(folder: Path, **changes: Any) -> DataSettings:
    tree = {"path": str(folder), "height": 16, "width": 16, "buckets": True, "streaming": True, **changes}
    return DataSettings.model_validate(tree)


def opener(settings: DataSettings, **options: Any) -> Callable[[Shard], OpenShard]:
    return partial(open_shard, settings=settings, multiple=4, seed=0, **options)


def make_stream(folder: Path, **options: Any) -> ShardStream:
    """The stream of a folder in batches of four."""
    settings = data_settings(folder)
    opening = options.pop("open", opener(settings))
    seed = options.pop("seed", 0)
    return ShardStream(list_shards(settings.all_sources()), opening, seed, 4, **options)


def one_epoch(stream: ShardStream, epoch: int = 0) -> list[list[str]]:
    """The ids of an epoch's batches."""
    found: list[list[str]] = []
    for position, turns in stream.batches(Position(epoch)):
        if position.epoch != epoch:
            return found
        found.append(ids(turns))
    raise AssertionError("a stream has no end")


def first(stream: ShardStream, num: int, start: Position = START) -> list[tuple[Position, list[Turn]]]:
    return list(islice(stream.batches(start), num))


def ids(turns: Sequence[Turn]) -> list[str]:
    return [turn.placed.sample.sample_id for turn in turns]

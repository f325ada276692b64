"""Shards of a stream: parquet files and tars, listed by name and opened when they are needed."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldm.data.image_index import ImageIndex
from ldm.data.prepare import BucketedSample, DataSettings, Prepared, prepare
from ldm.data.sample import NO_INPUTS, ImageInfo, Refusal, Sample, TaskInputs
from ldm.data.sources.no_caption import MissingCaption
from ldm.data.sources.parquet import parquet_files, read_parquet
from ldm.data.sources.reading import Kind, Reading, SourceSettings, dressed, kind_of
from ldm.data.sources.webdataset import read_tar, tar_files
from ldm.data.survey import survey
from ldm.errors import UserError

READERS = {"parquet": read_parquet, "webdataset": read_tar}

Gather = Callable[[list[Any]], list[Any]]
"""Concatenates the lists of all processes; every process gets the same result."""


@dataclass(frozen=True)
class Shard:
    """One file of samples.

    Attributes:
        number: among all shards of the run, from 0.
        name: of the file in its source; the ids of its samples begin with it.
        settings: of its source.
        source: the number of its source, if there are several.
    """

    number: int
    name: str
    path: Path
    kind: Kind
    settings: SourceSettings
    source: int | None = None

    @property
    def shard_id(self) -> str:
        """Unique in the run, and independent of where the data is."""
        return self.name if self.source is None else f"{self.source}/{self.name}"


@dataclass(frozen=True)
class OpenShard:
    """A shard that has been read, its images decoded once.

    Attributes:
        prepared: the samples that can be used, and the refusals.
        contents: a hash of everything that the order of its samples depends on.
    """

    shard: Shard
    reading: Reading
    facts: dict[str, ImageInfo | Refusal]
    prepared: Prepared
    contents: str

    @property
    def placed(self) -> list[BucketedSample]:
        """The samples that can be used, in the order of the file."""
        return self.prepared.placed


def list_shards(sources: Sequence[SourceSettings]) -> list[Shard]:
    """The shards of all sources, in order. Folders are listed, but no shard is opened.

    Raises:
        UserError: a source is missing, or is of a kind that has no shards.
    """
    shards: list[Shard] = []
    for index, settings in enumerate(sources):
        kind = kind_of(settings)
        for name, path in _files_of(settings, kind):
            source = index if len(sources) > 1 else None
            shards.append(Shard(len(shards), name, path, kind, settings, source))
    return shards


def _files_of(settings: SourceSettings, kind: Kind) -> list[tuple[str, Path]]:
    if kind == "parquet":
        return parquet_files(Path(settings.path), settings.split)
    if kind == "webdataset":
        return tar_files(Path(settings.path))
    raise UserError(
        f"{settings.path}: a source of kind {kind} has no shards to stream",
        "use parquet files or tars, or set data.streaming=false",
    )


def shards_hash(shards: Sequence[Shard]) -> str:
    """A hash of the names of the shards, on which the order of the shards depends."""
    return _hash([shard.shard_id for shard in shards])


def read_shard(shard: Shard, inputs: TaskInputs = NO_INPUTS, missing: MissingCaption = "error") -> Reading:
    """The samples of a shard as `read_source` returns them, with weights, masks, repeats and ids.

    Args:
        inputs: the further images and texts that the task needs.
        missing: what to do with images that have no caption.

    Raises:
        UserError: the file is broken or has no such columns, or two samples have one id.
    """
    settings = shard.settings
    columns = {"image_column": settings.image_column, "caption_column": settings.caption_column}
    outcomes: list[Sample | Refusal] = list(
        READERS[shard.kind](shard.name, shard.path, inputs=inputs, missing=missing, **columns)
    )
    samples = [outcome for outcome in outcomes if isinstance(outcome, Sample)]
    refusals = [outcome for outcome in outcomes if isinstance(outcome, Refusal)]
    return dressed(Reading(samples, refusals), settings, str(shard.path), shard.source)


def open_shard(
    shard: Shard,
    settings: DataSettings,
    *,
    multiple: int,
    seed: int,
    image_index: Path | None = None,
    rank: int = 0,
    num_processes: int = 1,
    gather: Gather = list,
    inputs: TaskInputs = NO_INPUTS,
    missing: MissingCaption = "error",
) -> OpenShard:
    """Read a shard, decode its images, shared among all processes, and place its samples.

    Args:
        multiple: with buckets, image sides are multiples of this many pixels.
        image_index: the cache's folder, which has an image index for each shard.
        gather: shares what each process found out with all; every process calls it.
        inputs: the further images and texts that the task needs.
        missing: what to do with images that have no caption.

    Raises:
        UserError: the shard as a whole cannot be read.
    """
    reading = read_shard(shard, inputs, missing)
    known = ImageIndex(image_index / "streams" / _hash(str(shard.path.resolve()))) if image_index else None
    mine = survey(reading.samples, known, rank=rank, num_processes=num_processes)
    if known is not None:
        known.save()
    facts: dict[str, ImageInfo | Refusal] = dict(gather(list(mine.items())))
    # the limit is about all shards seen so far, not about one
    any_number = settings.model_copy(update={"max_bad_fraction": 1.0})
    prepared = prepare(reading, facts, any_number, multiple=multiple, seed=seed)
    return OpenShard(shard, reading, facts, prepared, contents_hash(prepared))


def contents_hash(prepared: Prepared) -> str:
    """A hash of every sample's id, size, captions, texts and images, and of the refused ids; not of the file's path."""
    used = [
        (one.sample.sample_id, one.size, one.sample.captions, one.facts.content_hash, *one.inputs_record)
        for one in prepared.placed
    ]
    return _hash([used, [refusal.sample_id for refusal in prepared.refusals]])


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()

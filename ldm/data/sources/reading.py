"""Reading samples from folders, parquet files, WebDataset tars and `datasets`, from one source or several."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from ldm.config import Settings
from ldm.data.masks import AlphaMask, with_masks
from ldm.data.sample import NO_INPUTS, Refusal, Sample, TaskInputs
from ldm.data.sources.hf_datasets import DatasetsKey, is_saved_dataset, read_datasets
from ldm.data.sources.image_folder import FolderColumns, examine_folder
from ldm.data.sources.metadata import FILE_NAMES
from ldm.data.sources.no_caption import MissingCaption
from ldm.data.sources.parquet import parquet_files, read_parquet
from ldm.data.sources.scan import is_folder, scan, status_of, stem, suffix
from ldm.data.sources.webdataset import COMPRESSED_SUFFIXES, read_tar, tar_files
from ldm.errors import UserError
from ldm.io.images import IMAGE_SUFFIXES

Kind = Literal["folder", "parquet", "webdataset", "datasets"]


class SourceSettings(Settings):
    """A source of samples. Images for prior preservation are a second source with its own loss_weight."""

    path: str = Field(
        description="a folder of captioned images, a parquet file or a folder of them, a WebDataset tar or a folder "
        "of them, a folder written by `save_to_disk`, or with kind: datasets a name on the Hub"
    )
    kind: Literal["auto", "folder", "parquet", "webdataset", "datasets"] = Field(
        "auto", description="what kind of data it is; auto detects it"
    )
    caption_column: str = Field("text", description="the column with the caption, a text or a list of texts")
    image_column: str = Field(
        "image",
        description="the column with the encoded image; in metadata files the column with the file name, "
        "if it is not file_name; in tars the suffix to use if a sample has several images",
    )
    split: str = Field("train", description="the split, if datasets or parquet files have several")
    config_name: str | None = Field(
        None, description="the configuration, if a dataset on the Hub has several"
    )
    repeats: int = Field(
        1, ge=1, description="how many times each sample is used per epoch, with different random draws"
    )
    loss_weight: float = Field(1.0, gt=0, description="factor of the loss of these samples")
    masks: Path | None = Field(
        None,
        description="a folder with an image for each sample, named after its id, white where the loss counts",
    )
    alpha_mask: bool = Field(False, description="whether the loss counts only where the images are opaque")

    @field_validator("alpha_mask")
    @classmethod
    def _one_kind_of_mask(cls, alpha_mask: bool, info: ValidationInfo) -> bool:
        if alpha_mask and info.data.get("masks"):
            raise ValueError("masks is set already; keep one of the two")
        return alpha_mask


@dataclass(frozen=True)
class Reading:
    """The samples of a source: everything found is either used or refused."""

    samples: list[Sample]
    refusals: list[Refusal]

    @property
    def num_found(self) -> int:
        return len(self.samples) + len(self.refusals)


def read_sources(
    sources: Sequence[SourceSettings],
    inputs: TaskInputs = NO_INPUTS,
    *,
    missing: MissingCaption = "error",
    tolerant: bool = False,
) -> Reading:
    """The samples of all sources, in order. With several sources, the ids of the first begin with `0/`, and so on.

    Args:
        inputs: the further images and texts that the task needs.
        missing: what to do with images that have no caption.
        tolerant: a fault in a folder is a refusal, not an error.

    Raises:
        UserError: as `read_source`.
    """
    many = len(sources) > 1
    readings = [
        read_source(settings, index if many else None, inputs, missing=missing, tolerant=tolerant)
        for index, settings in enumerate(sources)
    ]
    if not many:
        return readings[0]
    return Reading(
        [sample for reading in readings for sample in reading.samples],
        [refusal for reading in readings for refusal in reading.refusals],
    )


def read_source(
    settings: SourceSettings,
    index: int | None = None,
    inputs: TaskInputs = NO_INPUTS,
    *,
    missing: MissingCaption = "error",
    tolerant: bool = False,
) -> Reading:
    """The samples of a source with their weights and masks, each `repeats` times ("a.png", "a.png#2", ...).

    Args:
        index: the source's number among several, with which the ids then begin.
        inputs: the further images and texts that the task needs.
        missing: what to do with images that have no caption.
        tolerant: a fault in a folder is a refusal, not an error.

    Raises:
        UserError: the source is missing, empty or faulty as a whole, two samples have the same id, or the masks do not
            match the samples. A faulty row of a parquet file, a tar or a dataset becomes a refusal; a fault in a
            folder is an error, unless `tolerant` is true.
    """
    reading = _read(settings, kind_of(settings), inputs, missing, tolerant)
    if not reading.num_found:
        raise UserError(f"{settings.path}: no samples", "name another source")
    return dressed(reading, settings, settings.path, index)


def dressed(reading: Reading, settings: SourceSettings, place: str, index: int | None = None) -> Reading:
    """Apply the source's settings to what was read at `place`: weights, masks, repeats and ids.

    Raises:
        UserError: two samples have the same id, or the masks do not match the samples.
    """
    samples = reading.samples
    if settings.loss_weight != 1:
        samples = [replace(sample, loss_weight=settings.loss_weight) for sample in samples]
    if settings.alpha_mask:
        samples = [replace(sample, loss_mask=AlphaMask(sample.image)) for sample in samples]
    if settings.masks:
        samples = with_masks(samples, settings.masks, [refusal.sample_id for refusal in reading.refusals])
    prefix = "" if index is None else f"{index}/"
    reading = _repeated(replace(reading, samples=samples), settings.repeats, prefix)
    _refuse_same_ids(place, reading)
    return reading


def kind_of(settings: SourceSettings, names: Sequence[str] | None = None) -> Kind:
    """The kind of a source, from its settings or detected from its files.

    Args:
        names: the files in its folder, if they are known.

    Raises:
        UserError: there is nothing at its path, or it could be more than one kind.
    """
    root = Path(settings.path)
    if settings.kind == "datasets":
        return "datasets"
    if status_of(root) is None:
        raise UserError(
            f"{root}: no such folder or file",
            "name another, or set kind to datasets for a dataset on the Hub",
        )
    if settings.kind != "auto":
        return settings.kind
    return _kind_of_folder(root, names) if is_folder(root) else _kind_of_file(root)


def _kind_of_file(path: Path) -> Kind:
    if path.name.lower().endswith(".parquet"):
        return "parquet"
    if path.name.lower().endswith((".tar", *COMPRESSED_SUFFIXES)):
        return "webdataset"
    raise UserError(f"{path}: not a file of samples", "name a folder, a .parquet or a .tar")


def _kind_of_folder(root: Path, names: Sequence[str] | None) -> Kind:
    if is_saved_dataset(root):
        return "datasets"
    found = _kinds_in(scan(root, _passed_over) if names is None else names)
    if len(found) > 1:
        (one, kind), (other, another) = list(found.items())[:2]
        kinds = " or ".join(dict.fromkeys((kind, another)))
        raise UserError(f"{root}: has {one} and {other}", f"set kind to {kinds} (--kind)")
    return next(iter(found.values()), "folder")


def _passed_over(name: str, error: UserError) -> None:
    """A file that the reader of this kind reports, if it concerns it."""


def _kinds_in(names: Sequence[str]) -> dict[str, Kind]:
    """What a folder has that samples could come from, each with its kind.

    Metadata and images together are one folder. A parquet file with the name of a tar next to it describes that tar, as
    img2dataset writes them.
    """
    tars = [name for name in names if name.lower().endswith((".tar", *COMPRESSED_SUFFIXES))]
    described = {stem(name) for name in tars}
    metadata = [name for name in names if name.rpartition("/")[2] in FILE_NAMES]
    tables = [name for name in names if name.lower().endswith(".parquet")]
    parquet = [name for name in tables if name not in metadata and stem(name) not in described]
    found: dict[str, Kind] = {}
    if metadata:
        found[PurePosixPath(metadata[0]).name] = "folder"
    elif any(suffix(name) in IMAGE_SUFFIXES for name in names):
        found["images"] = "folder"
    if tars:
        found["tars"] = "webdataset"
    if parquet:
        found["parquet files"] = "parquet"
    return found


def ignored_files(settings: SourceSettings) -> dict[str, int]:
    """The number of ignored files in a source's folder by suffix, most frequent first; hidden files do not count.

    Raises:
        UserError: as `kind_of`.
    """
    root = Path(settings.path)
    names = scan(root, _passed_over) if settings.kind != "datasets" and is_folder(root) else []
    kind = kind_of(settings, names)
    if kind == "datasets" or not names:
        return {}
    captions = {".txt"} if not set(FILE_NAMES) & set(names) else set()  # the metadata has the captions
    own = {"parquet": {".parquet"}, "webdataset": {".tar"}, "folder": {*IMAGE_SUFFIXES, *captions}}[kind]
    found = ((name, suffix(name)) for name in names)
    others = (kind for name, kind in found if kind not in own and name not in FILE_NAMES)
    return dict(Counter(kind or "without a suffix" for kind in others).most_common())


def _read(
    settings: SourceSettings, kind: Kind, inputs: TaskInputs, missing: MissingCaption, tolerant: bool
) -> Reading:
    root, captions, images = Path(settings.path), settings.caption_column, settings.image_column
    if kind == "folder":
        files = "file_name" if images == "image" else images
        samples, faults = examine_folder(root, FolderColumns(captions, files, inputs, missing))
        if not tolerant:
            faults.raise_if_any()
        return Reading(samples, faults.refusals)
    options: Any = {"caption_column": captions, "image_column": images, "inputs": inputs, "missing": missing}
    outcomes: list[Sample | Refusal] = []
    if kind == "datasets":
        key = DatasetsKey(settings.path, settings.config_name, settings.split)
        outcomes.extend(read_datasets(key, **options))
    if kind == "parquet":
        for name, path in parquet_files(root, settings.split):
            outcomes.extend(read_parquet(name, path, **options))
    if kind == "webdataset":
        for name, path in tar_files(root):
            outcomes.extend(read_tar(name, path, **options))
    return Reading(
        [outcome for outcome in outcomes if isinstance(outcome, Sample)],
        [outcome for outcome in outcomes if isinstance(outcome, Refusal)],
    )


def _repeated(reading: Reading, repeats: int, prefix: str) -> Reading:
    """Repeat samples and refusals alike, so that their ratio stays the same."""
    if repeats == 1 and not prefix:
        return reading
    ends = ["", *(f"#{turn}" for turn in range(2, repeats + 1))]
    return Reading(
        [replace(s, sample_id=f"{prefix}{s.sample_id}{end}") for end in ends for s in reading.samples],
        [replace(r, sample_id=f"{prefix}{r.sample_id}{end}") for end in ends for r in reading.refusals],
    )


def _refuse_same_ids(place: str, reading: Reading) -> None:
    """Ids key the random draws of samples, so they must be different."""
    seen: set[str] = set()
    for sample_id in [s.sample_id for s in reading.samples] + [r.sample_id for r in reading.refusals]:
        if sample_id in seen:
            raise UserError(f"{place}: two samples are called {sample_id!r}", "rename one of them")
        seen.add(sample_id)

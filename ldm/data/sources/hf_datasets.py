"""Captioned images from the `datasets` library: a folder that `save_to_disk` wrote, or a dataset by name."""

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field

from ldm.data.sample import NO_INPUTS, FileImage, Refusal, Sample, Stamp, TaskInputs, stamp_of
from ldm.data.sources.metadata import table_rows
from ldm.data.sources.no_caption import MissingCaption
from ldm.data.sources.parquet import image_bytes, image_present, plain_columns, sample_or_refusal
from ldm.data.sources.scan import is_file
from ldm.errors import UserError, unknown_name
from ldm.io.json_files import read_json, shortened
from ldm.io.opening import check_file

_BATCH_ROWS = 1000

MAX_ARROW_BATCH_BYTES = 4 * 2**30
"""How much memory one batch of a saved dataset may take when it is read. Files are written so that they are mapped."""


@dataclass(frozen=True)
class DatasetsKey:
    """A dataset: its folder or name, its configuration and its split."""

    path: str
    config_name: str | None = None
    split: str = "train"

    @property
    def is_saved(self) -> bool:
        """Whether it is a folder that `save_to_disk` wrote."""
        return is_saved_dataset(Path(self.path))


@dataclass(frozen=True)
class DatasetsImage:
    """The image of one row, counted from 0. Each process opens the dataset once.

    Attributes:
        input_name: of a further image; None for the main one.
    """

    dataset: DatasetsKey
    row: int
    column: str
    input_name: str | None = None

    @property
    def name(self) -> str:
        place = f"{self.dataset.path} {self.dataset.split} row {self.row}"
        return f"{place}, {self.input_name}" if self.input_name else place

    def read(self) -> bytes:
        try:
            value = _cells(self.dataset, self.column)[self.row].column(0)[0].as_py()
        except IndexError:
            raise UserError(f"{self.name}: no such row any more", "start again") from None
        path = value.get("path") if isinstance(value, dict) and not value.get("bytes") else None
        if path and not self.dataset.is_saved:  # a file that the library downloaded
            return FileImage(Path(path)).read()
        return image_bytes(value, self.name)

    def stamp(self) -> Stamp | None:
        """Of all the files of the dataset together."""
        files = [Path(file["filename"]).stat() for file in open_dataset(self.dataset).cache_files]
        if not files:
            return None
        entry = f"{Path(self.dataset.path).resolve()}#{self.dataset.split}/{self.column}/{self.row}"
        return stamp_of(entry, *files)


def is_saved_dataset(root: Path) -> bool:
    """Whether a folder is one that `save_to_disk` wrote."""
    whole = all(is_file(root / name) for name in ("dataset_info.json", "state.json"))
    return whole or is_file(root / "dataset_dict.json")


def read_datasets(
    dataset: DatasetsKey,
    *,
    image_column: str,
    caption_column: str,
    inputs: TaskInputs = NO_INPUTS,
    missing: MissingCaption = "error",
) -> Iterator[Sample | Refusal]:
    """Every row as a sample `split/row`, or as a refusal if its caption or an image is missing or faulty.

    Args:
        inputs: the further images and texts that the task needs; each has a column of its name.
        missing: what to do with a row that has no caption. Rows have no file names.

    Raises:
        UserError: the dataset cannot be loaded, or has no such split or columns.
    """
    found = open_dataset(dataset)
    columns = plain_columns(dataset.path, found.features.arrow_schema, image_column, caption_column, inputs)
    image_columns = list(dict.fromkeys((image_column, *inputs.further_images)))
    tables = (
        found.select_columns([*image_columns, *columns]).with_format("arrow").iter(batch_size=_BATCH_ROWS)
    )
    first_row = 0
    for table in tables:
        present = {column: image_present(table.column(column)) for column in image_columns}
        rows = table_rows(table.select(columns), partial(_place, dataset, first_row))
        for index, row in enumerate(rows):
            image = DatasetsImage(dataset, first_row + index, image_column)
            named = {name: DatasetsImage(dataset, image.row, name, name) for name in inputs.further_images}
            images = {image_column: image, **named}
            # in downloaded datasets a cell may hold a path
            lost = [column for column in images if dataset.is_saved and not present[column][index]]
            faults = [f"{images[column].name}: no image bytes" for column in lost]
            sample_id = f"{dataset.split}/{image.row}"
            yield sample_or_refusal(
                row, sample_id, image, caption_column, named, inputs.texts, faults, missing
            )
        first_row += table.num_rows


def _place(dataset: DatasetsKey, first_row: int, index: int) -> str:
    return f"{dataset.path} {dataset.split} row {first_row + index}"


class _SavedState(BaseModel):
    """The part of a saved dataset's `state.json` that names files."""

    class File(BaseModel):
        """One Arrow file, beside `state.json`."""

        filename: str

    files: list[File] = Field(alias="_data_files")


class _Splits(BaseModel):
    """The folders named in `dataset_dict.json`."""

    splits: list[str]


def check_saved(root: Path) -> None:
    """Check the Arrow files of a folder that `save_to_disk` wrote.

    The library maps them into memory, where a wrong offset ends the process. So another process, with a limit on its
    memory, reads each offset first.

    Raises:
        UserError: a file is missing, is not a regular file of this folder, or is damaged.
    """
    index = root / "dataset_dict.json"
    parts = read_json(index, _Splits).splits if is_file(index) else [""]
    files = []
    for name in parts:
        folder = root / _plain_name(index, name) if name else root
        state = folder / "state.json"
        found: _SavedState = read_json(state, _SavedState)
        files += [folder / _plain_name(state, each.filename) for each in found.files]
    for file in files:
        try:
            check_file(file)
        except OSError as error:
            raise UserError(f"{file} cannot be read ({error.strerror})", "save the dataset again") from None
    done = subprocess.run(
        [sys.executable, "-I", "-c", _CHECK_ARROW, str(MAX_ARROW_BATCH_BYTES), *map(str, files)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        number = done.stdout.count("\n")
        name = files[max(0, number - 1)] if files else root
        raise UserError(f"{name} is not a valid Arrow file", "save the dataset again")


def _plain_name(place: Path, name: str) -> str:
    if name in ("", ".", "..") or "/" in name or "\0" in name:
        raise UserError(f"{place} names {shortened(name)}", "its files must be in the same folder")
    return name


_CHECK_ARROW = """
import resource, sys
import pyarrow
limit = int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def as_bytes(kind):
    if pyarrow.types.is_string(kind):
        return pyarrow.binary()
    if pyarrow.types.is_large_string(kind):
        return pyarrow.large_binary()
    if pyarrow.types.is_list(kind):
        return pyarrow.list_(as_bytes(kind.value_type))
    if pyarrow.types.is_struct(kind):
        return pyarrow.struct([field.with_type(as_bytes(field.type)) for field in kind])
    return kind


for name in sys.argv[2:]:
    print(flush=True)
    with pyarrow.memory_map(name) as source, pyarrow.ipc.open_stream(source) as reader:
        for batch in reader:
            for column in batch.columns:
                column.view(as_bytes(column.type)).validate(full=True)
"""
"""Prints a line before each file. Texts are looked at as bytes: one that is not UTF-8 is the fault of its row alone."""


@lru_cache(maxsize=8)
def _cells(dataset: DatasetsKey, column: str) -> Any:
    return open_dataset(dataset).select_columns([column]).with_format("arrow")


@lru_cache(maxsize=8)
def open_dataset(dataset: DatasetsKey) -> Any:
    """A `datasets.Dataset`, opened once per process.

    Raises:
        UserError: it does not exist, cannot be loaded or has no such split.
    """
    import datasets

    if dataset.is_saved:
        check_saved(Path(dataset.path))
    try:
        if dataset.is_saved:
            found = datasets.load_from_disk(dataset.path)
        else:
            found = datasets.load_dataset(dataset.path, dataset.config_name, split=dataset.split)
    except Exception as error:  # the library raises almost anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"{dataset.path}: the dataset cannot be loaded ({reason})", "name another or fix it"
        ) from error
    if not isinstance(found, datasets.DatasetDict):
        return found
    if dataset.split not in found:
        raise unknown_name("split", dataset.split, found)
    return found[dataset.split]

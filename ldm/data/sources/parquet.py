"""Captioned images in parquet files: a row is a sample, with the encoded image in a column.

Reading a file reads only captions and other plain columns; images are read when they are needed.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from pathlib import Path, PurePosixPath
from typing import Any

from ldm.data.sample import (
    NO_INPUTS,
    ImageSource,
    Refusal,
    Sample,
    Stamp,
    TaskInputs,
    refusal_of,
    stamp_of,
)
from ldm.data.sources.metadata import Row, sample_of_row, table_rows
from ldm.data.sources.no_caption import MissingCaption
from ldm.data.sources.parquet_pages import SHARE_FOR_ROWS, check_num_rows, read_group
from ldm.data.sources.scan import scan
from ldm.errors import UserError, nearest
from ldm.io.opening import check_file

_SPLIT = re.compile(r"(train|training|validation|valid|val|dev|test|testing|eval)(?=$|[-_.])")
_OTHER_NAMES = {"training": "train", "valid": "validation", "val": "validation", "dev": "validation"}


@dataclass(frozen=True)
class ParquetImage:
    """The image of one row.

    Attributes:
        row: in the file, from 0.
        column: has bytes, or structures with a field `bytes` as `datasets` writes them.
        first_row: of its row group.
        input_name: of a further image; None for the main one.
    """

    path: Path
    row_group: int
    row: int
    column: str
    first_row: int = 0
    input_name: str | None = None

    @property
    def name(self) -> str:
        return f"{self.path.name} row {self.row}" + (f", {self.input_name}" if self.input_name else "")

    def read(self) -> bytes:
        contents = row_stamp(self.path, "")  # of the file: a stamp with the row would make every image a miss
        column = _column_reader(self.column)(self.path, contents, self.row_group, self.column)
        try:
            value = column[self.row - self.first_row].as_py()
        except IndexError:
            raise UserError(f"{self.name}: this row no longer exists", "start again") from None
        return image_bytes(value, self.name)

    def stamp(self) -> Stamp | None:
        return row_stamp(self.path, f"{self.column}/{self.row}")


def row_stamp(path: Path, entry: str) -> Stamp | None:
    """The stamp of an entry in a file: the name of the entry, and size and times of the file."""
    try:
        status = path.stat()
    except OSError:
        return None
    return stamp_of(f"{path.resolve()}#{entry}", status)


def image_bytes(value: Any, name: str) -> bytes:
    """The encoded image in a cell, which holds bytes or a mapping with `bytes`.

    Raises:
        UserError: there are no bytes. A path instead of them is not followed.
    """
    data = value.get("bytes") if isinstance(value, dict) else value
    if isinstance(data, bytes) and data:
        return data
    path = value.get("path") if isinstance(value, dict) else None
    if path:
        raise UserError(f"{name}: only the path {path!r} of an image", "store the images in the file")
    raise UserError(f"{name}: no image bytes", "remove the row")


@cache
def _column_reader(column: str) -> Callable[..., Any]:
    """`_read_column` with a separate cache for each column, so that columns do not evict each other."""
    return lru_cache(maxsize=2)(_read_column)


def _read_column(path: Path, stamp: Stamp | None, row_group: int, column: str) -> Any:
    """A column of a row group, the smallest unit that can be read. The stamp makes the cache notice a changed file."""
    import pyarrow  # type: ignore[import-untyped]

    with open_parquet(path, _footer(path, stamp)) as file:
        try:
            return read_group(file, path, row_group, [column]).column(column)
        except (pyarrow.ArrowException, OSError, KeyError, ValueError) as error:
            raise _broken(path, error) from error


@lru_cache(maxsize=4)
def _footer(path: Path, stamp: Stamp | None) -> Any:
    """The metadata of a file, which takes long to read if there are many row groups."""
    with open_parquet(path) as file:
        return file.metadata


def open_parquet(path: Path, footer: Any = None) -> Any:
    """A `pyarrow.parquet.ParquetFile`, which is a context manager.

    Args:
        footer: its metadata, if already read.

    Raises:
        UserError: the file is gone or damaged.
    """
    import pyarrow
    import pyarrow.parquet  # type: ignore[import-untyped]

    try:
        check_file(path)
        return pyarrow.parquet.ParquetFile(path, metadata=footer)
    except (pyarrow.ArrowException, OSError) as error:
        raise _broken(path, error) from error


def _broken(path: Path, error: Exception) -> UserError:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else error
    return UserError(
        f"{path}: not a readable Parquet file ({' '.join(str(reason).split())})", "write it again"
    )


def parquet_files(root: Path, split: str) -> list[tuple[str, Path]]:
    """The parquet files of a folder with their names relative to it, or a single file with its name.

    If all files are named after a split (`train-00000.parquet`, `test/0.parquet`), only those of `split` are used.

    Raises:
        UserError: there are none, or none of the split.
    """
    if root.is_file():
        return [(root.name, root)]
    names = [name for name in scan(root) if name.lower().endswith(".parquet")]
    if not names:
        raise UserError(f"{root}: no parquet files in this folder", "name another folder")
    splits = {name: _split_of(name) for name in names}
    if all(splits.values()):
        names = [name for name in names if splits[name] == _OTHER_NAMES.get(split, split)]
    if not names:
        there = ", ".join(sorted({str(found) for found in splits.values()}))
        raise UserError(f"{root}: no files of the split {split!r}", f"set split to one of {there}")
    return [(name, root / name) for name in names]


def _split_of(name: str) -> str | None:
    """The split that a file or its folder is named after."""
    for part in reversed(PurePosixPath(name).parts):
        if found := _SPLIT.match(part):
            return _OTHER_NAMES.get(found[1], found[1])
    return None


def read_parquet(
    name: str,
    path: Path,
    *,
    image_column: str,
    caption_column: str,
    inputs: TaskInputs = NO_INPUTS,
    missing: MissingCaption = "error",
) -> Iterator[Sample | Refusal]:
    """Every row of a file as a sample, or as a refusal if its caption or an image is missing or faulty.

    Args:
        name: the file's name, with which the ids begin: row 7 is `name/7`.
        inputs: the further images and texts that the task needs; each has a column of its name.
        missing: what to do with a row that has no caption. Rows have no file names.

    Raises:
        UserError: the file is damaged or has no such columns.
    """
    with open_parquet(path) as file:
        check_num_rows(path, file.metadata.num_rows)
        columns = plain_columns(path, file.schema_arrow, image_column, caption_column, inputs)
        first_row = 0
        for group in range(file.num_row_groups):
            lost = {
                column: _rows_without_image(file, path, group, column)
                for column in (image_column, *inputs.further_images)
            }
            for index, row in enumerate(_group_rows(file, path, group, columns, first_row)):
                place = partial(ParquetImage, path, group, first_row + index, first_row=first_row)
                image = place(image_column)
                named = {column: place(column, input_name=column) for column in inputs.further_images}
                images = {image_column: image, **named}
                faults = [
                    f"{images[column].name}: no image bytes" for column in images if index in lost[column]
                ]
                sample_id = f"{name}/{image.row}"
                yield sample_or_refusal(
                    row, sample_id, image, caption_column, named, inputs.texts, faults, missing
                )
            first_row += file.metadata.row_group(group).num_rows


def sample_or_refusal(
    row: Row,
    sample_id: str,
    image: ImageSource,
    caption_column: str,
    images: Mapping[str, ImageSource],
    texts: Sequence[str],
    faults: Sequence[str],
    missing: MissingCaption = "error",
) -> Sample | Refusal:
    """The sample of a row, or a refusal for the first of `faults` or the first fault in the row itself."""
    if faults:
        return refusal_of(sample_id, UserError(faults[0], "remove the row"))
    try:
        return sample_of_row(
            row,
            sample_id,
            image,
            caption_column=caption_column,
            images=images,
            texts=texts,
            missing=missing,
        )
    except UserError as error:
        return refusal_of(sample_id, error)


def _group_rows(file: Any, path: Path, group: int, columns: list[str], first_row: int) -> Iterator[Row]:
    import pyarrow

    try:
        table = read_group(file, path, group, columns, SHARE_FOR_ROWS)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise _broken(path, error) from error
    return table_rows(table, lambda index: f"{path.name} row {first_row + index}")


def _rows_without_image(file: Any, path: Path, group: int, column: str) -> set[int]:
    """The rows of a row group whose image is null. The column is read only if the file's statistics count any."""
    import pyarrow

    chunks = file.metadata.row_group(group)
    leaves = [chunks.column(index) for index in range(chunks.num_columns)]
    statistics = [leaf.statistics for leaf in leaves if leaf.path_in_schema in (column, f"{column}.bytes")]
    if not any(found is not None and found.has_null_count and found.null_count for found in statistics):
        return set()
    try:
        cells = read_group(file, path, group, [column]).column(column)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise _broken(path, error) from error
    return {index for index, has_bytes in enumerate(image_present(cells)) if not has_bytes}


def image_present(cells: Any) -> list[bool]:
    """For each cell of an image column (an Arrow array), whether it has bytes."""
    import pyarrow
    import pyarrow.compute  # type: ignore[import-untyped]

    if pyarrow.types.is_struct(cells.type):
        cells = pyarrow.compute.struct_field(cells, "bytes")
    return cells.is_valid().to_pylist()  # type: ignore[no-any-return]


def plain_columns(
    place: object, schema: Any, image_column: str, caption_column: str, inputs: TaskInputs = NO_INPUTS
) -> list[str]:
    """The columns of an Arrow schema to read together with the captions: texts, numbers and lists of texts.

    Raises:
        UserError: the column of images or captions, or of a further image or text, is missing, or a column of images
            has something else.
    """
    texts = {name.strip() for name in schema.names}  # as in the rows, see `row_of`
    required = {
        "image_column": (image_column, schema.names),
        "caption_column": (caption_column.strip(), texts),
    }
    for setting, (column, there) in required.items():
        if column not in there:
            guess = nearest(column, schema.names) or ", ".join(schema.names)
            raise UserError(f"{place}: no column {column!r}", f"set {setting} to one of the columns: {guess}")
    for column in (*inputs.further_images, *inputs.texts):
        if column not in (schema.names if column in inputs.further_images else texts):
            there = ", ".join(schema.names)
            raise UserError(f"{place}: no column {column!r}, which the task needs", f"rename one of {there}")
    for column in (image_column, *inputs.further_images):
        if not _holds_images(found := schema.field(column).type):
            hint = "set image_column to one with images" if column == image_column else "put images in it"
            raise UserError(f"{place}: column {column!r} holds {found}", hint)
    wanted = {field.name for field in schema if _is_plain(field.type)}
    wanted |= {name for name in schema.names if name.strip() == caption_column.strip()}
    return [name for name in schema.names if name in wanted and name != image_column]


def _holds_images(kind: Any) -> bool:
    from pyarrow import types

    if types.is_struct(kind):
        return any(field.name == "bytes" and _holds_images(field.type) for field in kind)
    return bool(types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind))


def _is_plain(kind: Any) -> bool:
    from pyarrow import types

    if types.is_list(kind) or types.is_large_list(kind):
        return _is_text(kind.value_type)
    return bool(_is_text(kind) or types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind))


def _is_text(kind: Any) -> bool:
    from pyarrow import types

    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))

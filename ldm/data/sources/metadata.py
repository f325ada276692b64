"""Rows of metadata.jsonl, .csv and .parquet and of Arrow tables, with their places for messages; samples from rows."""

import csv
import io
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ldm.data.sample import ImageSource, Sample
from ldm.data.sources.parquet_pages import SHARE_FOR_ROWS, check_num_rows, read_group
from ldm.data.sources.scan import is_file
from ldm.errors import UserError, nearest
from ldm.io.json_files import TwiceError, parse_json
from ldm.io.opening import MAX_TEXT_BYTES, check_file, read_bytes

FILE_NAMES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")

MAX_CAPTION_BYTES = 2**20
"""Longer texts are refused: their row is at fault."""

MAX_COLUMNS = 10_000

_KNOWN_COLUMNS = {"file_name", "image", "text", "captions", "flip"}


@dataclass(frozen=True)
class Row:
    """A row: its values by column, and its place for messages ("metadata.csv, line 3")."""

    place: str
    values: dict[str, Any]


def metadata_file(root: Path) -> Path | None:
    """The metadata file of a folder, or None.

    Raises:
        UserError: there is more than one.
    """
    found = [root / name for name in FILE_NAMES if is_file(root / name)]
    if len(found) > 1:
        names = " and ".join(path.name for path in found)
        raise UserError(f"{root}: has {names}", "keep one of them")
    return found[0] if found else None


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of a metadata file, in order.

    Raises:
        UserError: the file is not UTF-8, or a row cannot be read; the message gives the line.
    """
    readers = {".jsonl": _read_jsonl, ".csv": _read_csv, ".parquet": _read_parquet}
    return readers[path.suffix](path)


def decode_utf8(path: Path, data: bytes | None = None) -> str:
    """The text of a file, without a byte order mark and with "\\n" line ends.

    Args:
        data: its content, if already read.

    Raises:
        UserError: the bytes are not UTF-8; the message gives line and byte offset.
    """
    try:
        found = read_bytes(path, MAX_TEXT_BYTES) if data is None else data
        text = found.decode("utf-8")
    except UnicodeDecodeError as error:
        line = found.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{path}, line {line}: not UTF-8 at byte {error.start}", "save it as UTF-8"
        ) from error
    except OSError as error:
        hint = "name a file in it" if path.is_dir() else "make the file readable"
        raise UserError(f"{path}: {error.strerror}", hint) from error
    return text.removeprefix("\ufeff").replace("\r\n", "\n")


def clean_caption(text: str, place: str) -> str:
    """A caption without surrounding white space, in Unicode's composed form (NFC).

    Raises:
        UserError: it is empty or contains a lone surrogate; the message begins with `place`.
    """
    if len(text) > MAX_CAPTION_BYTES:
        raise UserError(f"{place}: {len(text):,} letters are too many for a caption", "shorten it")
    caption = unicodedata.normalize("NFC", text.strip())
    if not caption:
        raise UserError(f"{place}: empty caption", "write a caption or remove the image")
    try:
        caption.encode()
    except UnicodeEncodeError as error:
        bad = f"\\u{ord(caption[error.start]):04x}"
        raise UserError(f"{place}: {bad} is not a character", "write the caption as UTF-8") from error
    return caption


def _read_jsonl(path: Path) -> Iterator[Row]:
    # Not splitlines(): a caption may contain U+2028 or U+0085.
    for number, line in enumerate(decode_utf8(path).split("\n"), start=1):
        if not line.strip():
            continue
        place = f"{path}, line {number}"
        try:
            values = loads_once(line, place)
        except ValueError as error:
            raise UserError(f"{place}: not JSON ({error})", "write one JSON object per line") from error
        if not isinstance(values, dict):
            raise UserError(f"{place}: not a JSON object", 'write {"file_name": ..., "text": ...}')
        yield Row(place, values)


def loads_once(text: str, place: str) -> Any:
    """Parse JSON.

    Raises:
        UserError: an object has a key twice, so that one of the two values would be lost.
        ValueError: it is not JSON.
    """

    try:
        return parse_json(text, once=True)
    except TwiceError as error:
        raise UserError(f"{place}: {error}", "keep one of the two") from None


def _refuse_twice(place: str, columns: Sequence[str]) -> None:
    counts = Counter(columns)
    for column in columns:
        if column and counts[column] > 1:
            raise UserError(f"{place}: {column!r} occurs twice", "keep one of the two")


def _read_csv(path: Path) -> Iterator[Row]:
    text = decode_utf8(path)
    if (num_columns := text.count(",", 0, text.find("\n")) + 1) > MAX_COLUMNS:
        raise UserError(f"{path}: {num_columns:,} columns", f"keep at most {MAX_COLUMNS:,}")
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        reader.fieldnames = _header(path, reader.fieldnames or ())
        for values in reader:
            # A quoted caption may span several lines; the last one names the row.
            place = f"{path}, line {reader.line_num}"
            if None in values:
                raise UserError(
                    f"{place}: more cells than columns", "put captions with commas in double quotes"
                )
            yield Row(place, values)
    except csv.Error as error:
        raise UserError(
            f"{path}, line {reader.reader.line_num}: {error}", "save it as comma-separated values"
        ) from error


def _header(path: Path, columns: Sequence[str]) -> list[str]:
    """The stripped names of the columns."""
    for separator, name in ((";", "semicolons"), ("\t", "tabs")):
        if len(columns) == 1 and separator in columns[0]:
            raise UserError(f"{path}: its columns are separated by {name}", "save it with commas")
    names = [column.strip() for column in columns]
    _refuse_twice(f"{path}, line 1", names)
    return names


def _read_parquet(path: Path) -> Iterator[Row]:
    import pyarrow  # type: ignore[import-untyped]
    import pyarrow.parquet  # type: ignore[import-untyped]

    first_row = 0
    try:
        check_file(path)
        with pyarrow.parquet.ParquetFile(path) as file:
            check_num_rows(path, file.metadata.num_rows)
            for group in range(file.num_row_groups):
                table = read_group(file, path, group, file.schema_arrow.names, SHARE_FOR_ROWS)
                yield from table_rows(table, partial(_row_place, path, first_row))
                first_row += table.num_rows
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise UserError(f"{path}: not a readable Parquet file ({error})", "write it again") from error


def _row_place(path: Path, first_row: int, index: int) -> str:
    return f"{path}, row {first_row + index + 1}"


def table_rows(table: Any, place: Callable[[int], str]) -> Iterator[Row]:
    """The rows of a `pyarrow.Table`. Text that is not UTF-8 is returned as bytes, so that only its row is at fault.

    So is the beginning of a text that is longer than `MAX_CAPTION_BYTES`.

    Args:
        place: index of a row, from 0 -> its place for messages.
    """
    if table.num_rows:
        _refuse_twice(place(0), table.column_names)
    columns = {name: _values(table.column(name)) for name in table.column_names}
    for index in range(table.num_rows):
        yield Row(place(index), {name: values[index] for name, values in columns.items()})


def _values(column: Any) -> list[Any]:
    try:
        if _longest(column) <= MAX_CAPTION_BYTES:
            return column.to_pylist()  # type: ignore[no-any-return]
        return [_value(scalar) for scalar in column]
    except UnicodeDecodeError:
        return [_value(scalar) for scalar in column]


def _longest(column: Any) -> int:
    """The size in bytes of the longest text of a column; 0 for a column of something else."""
    import pyarrow
    import pyarrow.compute  # type: ignore[import-untyped]

    kinds = pyarrow.types
    if not (kinds.is_string(column.type) or kinds.is_large_string(column.type)):
        return 0
    return pyarrow.compute.max(pyarrow.compute.binary_length(column)).as_py() or 0


def _value(scalar: Any) -> Any:
    if (
        hasattr(scalar, "as_buffer")
        and (cell := scalar.as_buffer()) is not None
        and cell.size > MAX_CAPTION_BYTES
    ):
        return bytes(cell[: MAX_CAPTION_BYTES + 1])
    try:
        return scalar.as_py()
    except UnicodeDecodeError as error:
        return bytes(error.object)


def sample_of_row(
    row: Row,
    sample_id: str,
    image: ImageSource,
    *,
    caption_column: str,
    file_column: str | None = None,
    images: Mapping[str, ImageSource] | None = None,
    texts: Sequence[str] = (),
) -> Sample:
    """A sample from its image and the row that describes it.

    The row has one or more captions in `caption_column` and may have further ones in `captions`. `flip` says whether
    they are still true of the mirrored image. All other columns go into `extra`.

    Args:
        images: the further images of the sample, by name.
        texts: the columns of the further texts that the task needs.

    Raises:
        UserError: a caption or text is missing, empty or not a text, or `flip` is neither true nor false.
    """
    used = {file_column, caption_column, "captions", "flip"}
    return Sample(
        sample_id=sample_id,
        image=image,
        captions=_captions(row, caption_column),
        may_flip=row_bool(row, "flip"),
        extra={key: value for key, value in row.values.items() if key not in used},
        images=images or {},
        texts={name: clean_caption(row_text(row, name), row.place) for name in texts},
    )


def _captions(row: Row, column: str) -> tuple[str, ...]:
    """Each caption once, in order, those of the caption column first."""
    several = isinstance(row.values.get(column), list) and row.values[column]
    captions = row_list(row, column) if several else [row_text(row, column, "caption_column")]
    further = row_list(row, "captions") if column != "captions" else []
    return tuple(dict.fromkeys(clean_caption(text, row.place) for text in (*captions, *further)))


def name_column(row: Row, column: str) -> str:
    """The column with the file name: `file_name`, or `image` if the row has no `file_name` and `image` is a text."""
    if column == "file_name" and column not in row.values and isinstance(row.values.get("image"), str):
        return "image"
    return column


def row_text(row: Row, column: str, setting: str | None = None) -> str:
    """A text that is required.

    Args:
        setting: the setting that names the column; None if its name is fixed.

    Raises:
        UserError: it is missing, empty or not a text.
    """
    value = row.values.get(column)
    if value is None or value in ("", []):
        raise UserError(
            f"{row.place}: no {column!r}",
            "fill it in" if column in row.values else _hint(row, column, setting),
        )
    if isinstance(value, bytes):
        return _decoded(row, column, value)
    if not isinstance(value, str):
        raise UserError(f"{row.place}: {column!r} is {value!r}, not text", "write it as text")
    return value


def _hint(row: Row, column: str, setting: str | None) -> str:
    """What to do about a missing column."""
    if setting is None:
        return (
            f"the task needs it in every row; this one has {', '.join(row.values)}: add it or rename a column"
        )
    others = [name for name in row.values if name not in _KNOWN_COLUMNS]
    guess = nearest(column, row.values) or (others[0] if len(others) == 1 else None)
    to = f" to {guess}" if guess else ""
    option = f"--{setting.replace('_', '-')}"
    return (
        f"every row needs it; this one has {', '.join(row.values)}: rename it or set {setting} ({option}){to}"
    )


def _decoded(row: Row, column: str, data: bytes) -> str:
    if len(data) > MAX_CAPTION_BYTES:
        raise UserError(f"{row.place}: {column!r} has more than {MAX_CAPTION_BYTES:,} bytes", "shorten it")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{row.place}: {column!r} is not UTF-8 at byte {error.start}", "save it as UTF-8"
        ) from None


def row_list(row: Row, column: str) -> list[str]:
    """A list of texts, empty if the column is. CSV files have it as JSON."""
    value = row.values.get(column)
    if isinstance(value, str) and value.startswith("["):
        try:
            value = parse_json(value)
        except ValueError as error:
            raise UserError(
                f"{row.place}: {column!r} is not a JSON list ({error})", 'write ["a", "b"]'
            ) from error
    if value is None or value == "":
        return []
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise UserError(f"{row.place}: {column!r} is {value!r}", 'write a list of texts, ["a", "b"]')
    return value


def row_bool(row: Row, column: str) -> bool | None:
    """True, False, or None if the column is empty."""
    value = row.values.get(column)
    if isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    if value is None or value == "":
        return None
    if not isinstance(value, bool):
        raise UserError(f"{row.place}: {column!r} is {value!r}", "write true or false")
    return value

"""Rows of metadata.jsonl, .csv and .parquet and of Arrow tables, with their places for messages; samples from rows.

Cells are read in the same way wherever they come from: column names and captions may have blanks around them, a list
may be written as JSON, and true and false as text or as 1 and 0.
"""

import csv
import io
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ldm.data.sample import ImageSource, Sample
from ldm.data.sources.no_caption import MissingCaption, caption_by_rule
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
_BOOLS = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}
_CSV_CELL = re.compile(r'[ \t]*("(?:[^"]|"")*+")[ \t]*(?=[,\n]|\Z)|[^,\n]+')
"""A quoted cell with blanks around it, which Python's reader does not accept, or any other cell."""


@dataclass(frozen=True)
class Row:
    """A row: its values by column, and its place for messages ("metadata.csv, line 3").

    The names of the columns have no blanks around them; `row_of` makes such a row.
    """

    place: str
    values: dict[str, Any]

    def cell(self, column: str) -> Any:
        """The value in a column, or None if there is no such column, or no number in a column of numbers."""
        value = self.values.get(column.strip())
        return None if isinstance(value, float) and math.isnan(value) else value


class NoColumn(UserError):
    """A row has no column of a name that every row needs."""


def row_of(place: str, values: Mapping[str, Any]) -> Row:
    """A row whose column names may have blanks around them.

    Raises:
        UserError: two names differ in blanks only.
    """
    names = [name.strip() for name in values]
    _refuse_twice(place, names)
    return Row(place, dict(zip(names, values.values(), strict=True)))


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


def read_rows(path: Path) -> Iterator[Row | UserError]:
    """The rows of a metadata file, in order, and in place of a row that cannot be read an error that names its line.

    Raises:
        UserError: the file as a whole cannot be read.
    """
    readers = {".jsonl": _read_jsonl, ".csv": _read_csv, ".parquet": _read_parquet}
    return readers[path.suffix](path)


def read_file(path: Path | str) -> bytes:
    """The bytes of a file.

    Raises:
        UserError: it cannot be read.
    """
    try:
        return read_bytes(path, MAX_TEXT_BYTES)
    except OSError as error:
        hint = "name a file in it" if Path(path).is_dir() else "make the file readable"
        raise UserError(f"{path}: {error.strerror}", hint) from error


def decode_utf8(path: Path | str, data: bytes | None = None) -> str:
    """The text of a file, without a byte order mark and with "\\n" line ends.

    Args:
        data: its content, if already read.

    Raises:
        UserError: the bytes are not UTF-8; the message gives line and byte offset.
    """
    found = read_file(path) if data is None else data
    try:
        text = found.decode("utf-8")
    except UnicodeDecodeError as error:
        line = found.count(b"\n", 0, error.start) + 1
        raise _not_utf8(path, line, error.start) from error
    return text.removeprefix("\ufeff").replace("\r\n", "\n")


def _not_utf8(path: Path | str, line: int, byte: int) -> UserError:
    return UserError(f"{path}, line {line}: not UTF-8 at byte {byte}", "save it as UTF-8")


def clean_caption(text: str, place: str) -> str:
    """A caption in Unicode's composed form (NFC), without surrounding white space and byte order mark.

    Lines end in "\\n".

    Raises:
        UserError: it is empty or contains a lone surrogate; the message begins with `place`.
    """
    if len(text) > MAX_CAPTION_BYTES:
        raise UserError(f"{place}: {len(text):,} letters are too many for a caption", "shorten it")
    text = text.removeprefix("\ufeff").replace("\r\n", "\n")
    caption = text.strip()
    if caption and caption.isascii():
        return caption
    caption = unicodedata.normalize("NFC", caption)
    if not caption:
        raise UserError(f"{place}: empty caption", "write a caption or remove the image")
    try:
        caption.encode()
    except UnicodeEncodeError as error:
        bad = f"\\u{ord(caption[error.start]):04x}"
        raise UserError(f"{place}: {bad} is not a character", "write the caption as UTF-8") from error
    return caption


def _decode_lines(path: Path) -> tuple[str, dict[int, UserError]]:
    """The text of a file, and the faults of the lines (from 1) that are not UTF-8."""
    data = read_file(path)
    try:
        return decode_utf8(path, data), {}
    except UserError:
        start, faults = 0, {}
        for number, line in enumerate(data.split(b"\n"), start=1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                faults[number] = _not_utf8(path, number, start + error.start)
            start += len(line) + 1
        readable = data.decode("utf-8", "replace").encode()
        return decode_utf8(path, readable), faults


def _read_jsonl(path: Path) -> Iterator[Row | UserError]:
    text, faults = _decode_lines(path)
    # Not splitlines(): a caption may contain U+2028 or U+0085.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield faults.get(number) or _row_of_json(line, f"{path}, line {number}")


def _row_of_json(line: str, place: str) -> Row | UserError:
    try:
        values = loads_once(line, place)
        if not isinstance(values, dict):
            return UserError(f"{place}: not a JSON object", 'write {"file_name": ..., "text": ...}')
        return row_of(place, values)
    except UserError as error:
        return error
    except (ValueError, RecursionError) as error:
        return UserError(f"{place}: not JSON ({error})", "write one JSON object per line")


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


def _read_csv(path: Path) -> Iterator[Row | UserError]:
    text, faults = _decode_lines(path)
    if (num_columns := text.count(",", 0, text.find("\n")) + 1) > MAX_COLUMNS:
        raise UserError(f"{path}: {num_columns:,} columns", f"keep at most {MAX_COLUMNS:,}")
    text = _CSV_CELL.sub(lambda cell: cell[1] or cell[0], text)
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        reader.fieldnames = _header(path, reader.fieldnames or ())
        first = reader.line_num + 1
        for values in reader:
            # A quoted caption may span several lines; the last one names the row.
            place = f"{path}, line {reader.line_num}"
            lines, first = range(first, reader.line_num + 1), reader.line_num + 1
            extra = values.pop(None, [])
            if fault := next((faults[line] for line in lines if line in faults), None):
                yield fault
            elif any(cell.strip() for cell in extra):
                yield UserError(
                    f"{place}: more cells than columns", "put captions with commas in double quotes"
                )
            else:
                yield Row(place, values)
    except csv.Error as error:
        yield UserError(
            f"{path}, line {reader.reader.line_num}: {error}", "save it as comma-separated values"
        )


def _header(path: Path, columns: Sequence[str]) -> list[str]:
    """The stripped names of the columns."""
    for separator, name in ((";", "semicolons"), ("\t", "tabs")):
        if len(columns) == 1 and separator in columns[0]:
            raise UserError(f"{path}: its columns are separated by {name}", "save it with commas")
    names = [column.strip() for column in columns]
    _refuse_twice(f"{path}, line 1", names)
    return names


def _read_parquet(path: Path) -> Iterator[Row | UserError]:
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
        _refuse_twice(place(0), [name.strip() for name in table.column_names])
    columns = {name.strip(): _values(table.column(name)) for name in table.column_names}
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
    missing: MissingCaption = "error",
    name: str = "",
    root: Path | None = None,
) -> Sample:
    """A sample from its image and the row that describes it.

    The row has one or more captions in `caption_column` and may have further ones in `captions`. `flip` says whether
    they are still true of the mirrored image. All other columns go into `extra`.

    Args:
        images: the further images of the sample, by name.
        texts: the columns of the further texts that the task needs.
        missing: what to do if the row has no caption; see `ldm.data.sources.no_caption` for `name` and `root`.

    Raises:
        UserError: a caption or text is missing, empty or not a text, or `flip` is neither true nor false.
    """
    used = {column.strip() for column in (file_column or "", caption_column, "captions", "flip")}
    by_rule = caption_by_rule(missing, name, root) if _no_caption(row, caption_column) else None
    return Sample(
        sample_id=sample_id,
        image=image,
        captions=_captions(row, caption_column) if by_rule is None else (by_rule,),
        may_flip=row_bool(row, "flip"),
        extra={key: value for key, value in row.values.items() if key not in used},
        images=images or {},
        texts={column: clean_caption(row_text(row, column), row.place) for column in texts},
        caption_rule="" if by_rule is None else missing,
    )


def _no_caption(row: Row, column: str) -> bool:
    """Whether a row has no caption at all, or only blanks."""
    values = [row.cell(name) for name in (column, "captions")]
    texts = [_as_list(value) or [value] for value in values]
    return not any(text for found in texts for text in found if not isinstance(text, str) or text.strip())


def _captions(row: Row, column: str) -> tuple[str, ...]:
    """Each caption once, in order, those of the caption column first."""
    captions = _as_list(row.cell(column)) or [row_text(row, column, "caption_column")]
    further = row_list(row, "captions") if column != "captions" else []
    return tuple(dict.fromkeys(clean_caption(text, row.place) for text in (*captions, *further)))


def _as_list(value: Any) -> list[str] | None:
    """The texts in a list, or in a text that is a JSON list of texts; None for anything else."""
    if isinstance(value, str) and value.strip().startswith("["):
        try:
            value = parse_json(value)
        except (ValueError, RecursionError):
            return None
    texts = isinstance(value, list) and all(isinstance(item, str) for item in value)
    return value if texts else None


def name_column(row: Row, column: str) -> str:
    """The column with the file name: `file_name`, or `image` if the row has no `file_name` and `image` is a text."""
    if column == "file_name" and column not in row.values and isinstance(row.cell("image"), str):
        return "image"
    return column


def row_text(row: Row, column: str, setting: str | None = None) -> str:
    """A text that is required.

    Args:
        setting: the setting that names the column; None if its name is fixed.

    Raises:
        UserError: it is missing, empty or not a text.
    """
    value = row.cell(column)
    if value is None or value == "" or _as_list(value) == []:
        if column.strip() in row.values:
            raise UserError(f"{row.place}: no {column!r}", "fill it in")
        raise NoColumn(f"{row.place}: no {column!r}", _hint(row, column, setting))
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
    """A list of texts, empty if the column is; it may be written as JSON, as CSV files have it."""
    value = row.cell(column)
    if value is None or (isinstance(value, str) and not value.strip()):
        return []
    found = _as_list(value)
    if found is None:
        broken = isinstance(value, str) and value.strip().startswith("[")
        what = "not a JSON list of texts" if broken else _short(value)
        raise UserError(f"{row.place}: {column!r} is {what}", 'write a list of texts, ["a", "b"]')
    return found


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."


def row_bool(row: Row, column: str) -> bool | None:
    """True, False, or None if the column is empty."""
    value = row.cell(column)
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    found = _BOOLS.get(str(value).strip().lower())
    if found is None:
        raise UserError(f"{row.place}: {column!r} is {_short(value)}", "write true or false")
    return found

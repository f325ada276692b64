"""Read metadata.jsonl, metadata.csv and metadata.parquet into rows that know where they came from."""

import csv
import io
import json
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldm.errors import UserError

FILE_NAMES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")


@dataclass(frozen=True)
class Row:
    """One row: its values by column, and its place for messages ("metadata.csv, line 3")."""

    place: str
    values: dict[str, Any]


def metadata_file(root: Path) -> Path | None:
    """The metadata file of a folder, or None.

    Raises:
        UserError: there are several.
    """
    found = [root / name for name in FILE_NAMES if (root / name).is_file()]
    if len(found) > 1:
        names = " and ".join(path.name for path in found)
        raise UserError(f"{root}: holds {names}", "keep one of them")
    return found[0] if found else None


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of a metadata file, in order.

    Raises:
        UserError: the file is not UTF-8, or a row cannot be read; the message names the line.
    """
    readers = {".jsonl": _read_jsonl, ".csv": _read_csv, ".parquet": _read_parquet}
    return readers[path.suffix](path)


def decode_utf8(path: Path) -> str:
    """The text of a file, without a byte order mark and with plain line ends.

    Raises:
        UserError: the bytes are not UTF-8; the message names line and byte offset.
    """
    try:
        data = path.read_bytes()
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{path}, line {line}: not UTF-8 at byte {error.start}", "save it as UTF-8"
        ) from error
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}", "make the file readable") from error
    return text.removeprefix("\ufeff").replace("\r\n", "\n")


def clean_caption(text: str, place: str) -> str:
    """A caption without surrounding white space, in Unicode's composed form (NFC).

    Raises:
        UserError: it is empty or holds half of a surrogate pair; the message begins with `place`.
    """
    caption = unicodedata.normalize("NFC", text.strip())
    if not caption:
        raise UserError(f"{place}: empty caption", "write a caption or take the image out")
    try:
        caption.encode()
    except UnicodeEncodeError as error:
        bad = f"\\u{ord(caption[error.start]):04x}"
        raise UserError(f"{place}: {bad} is no character", "write the caption as UTF-8") from error
    return caption


def _read_jsonl(path: Path) -> Iterator[Row]:
    # Not splitlines(): a caption may hold U+2028 or U+0085.
    for number, line in enumerate(decode_utf8(path).split("\n"), start=1):
        if not line.strip():
            continue
        place = f"{path}, line {number}"
        try:
            values = json.loads(line)
        except ValueError as error:
            raise UserError(f"{place}: not JSON ({error})", "write one JSON object a line") from error
        if not isinstance(values, dict):
            raise UserError(f"{place}: not a JSON object", 'write {"file_name": ..., "text": ...}')
        yield Row(place, values)


def _read_csv(path: Path) -> Iterator[Row]:
    reader = csv.DictReader(io.StringIO(decode_utf8(path), newline=""), strict=True)
    try:
        for values in reader:
            # A quoted caption may span lines; the row is named by the last of them.
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


def _read_parquet(path: Path) -> Iterator[Row]:
    import pyarrow  # type: ignore[import-untyped]
    import pyarrow.parquet  # type: ignore[import-untyped]

    try:
        table = pyarrow.parquet.read_table(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path}: not a readable Parquet file ({error})", "write it again") from error
    for number, values in enumerate(table.to_pylist(), start=1):
        yield Row(f"{path}, row {number}", values)


def row_text(row: Row, column: str) -> str:
    """A text that must be there and not empty."""
    value = row.values.get(column)
    if value is None or value == "":
        columns = ", ".join(row.values)
        mend = "fill it in" if column in row.values else f"every row needs it; this one has {columns}"
        raise UserError(f"{row.place}: no {column!r}", mend)
    if not isinstance(value, str):
        raise UserError(f"{row.place}: {column!r} is {value!r}, not text", "write it as text")
    return value


def row_list(row: Row, column: str) -> list[str]:
    """A list of texts, empty when the column is; in CSV it is written as JSON."""
    value = row.values.get(column)
    if isinstance(value, str) and value.startswith("["):
        try:
            value = json.loads(value)
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
    """True, False, or None when the column is empty."""
    value = row.values.get(column)
    if isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    if value is None or value == "":
        return None
    if not isinstance(value, bool):
        raise UserError(f"{row.place}: {column!r} is {value!r}", "write true or false")
    return value

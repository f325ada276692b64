"""Reading a row group of a parquet file within bounds: what its pages say they need is known before they are read.

A file of a few kB can hold one cell of gigabytes, or refer to one text millions of times. The footer states sizes too,
but nothing makes the pages agree with it, so the header of each page is read here.

    page header     thrift's compact protocol: 1 kind, 2 uncompressed size, 3 compressed size, further fields
    page            compressed
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ldm.errors import UserError
from ldm.io.memory import check_memory, free_memory_bytes
from ldm.io.opening import MAX_IMAGE_BYTES, open_file

MAX_PAGE_HEADER_BYTES = 2**20
MAX_DICTIONARY_BYTES = MAX_IMAGE_BYTES
"""Maximum size of the distinct values of a column in a row group; writers stop soon after 1 MB."""

BATCH_BYTES = 256 * 2**20
BATCH_ROWS = 65_536
"""How much is decoded before the memory taken is looked at again, and at most how many rows."""

ROW_BYTES = 1000
"""Roughly what a sample takes in memory."""

SHARE_FOR_IMAGES, SHARE_FOR_ROWS = 0.5, 0.2
"""Share of the free memory that a row group may take. Rows are converted to Python's objects, which takes more."""

DICTIONARY_PAGE = 2
_BOOLEANS, _NUMBERS, _DOUBLE, _BINARY, _LISTS, _MAP, _STRUCT = (1, 2), (4, 5, 6), 7, 8, (9, 10), 11, 12
_HINT = "write it again, with smaller row groups"


class Page(NamedTuple):
    """What the header of a page says."""

    is_dictionary: bool
    num_bytes: int


def check_num_rows(path: Path, num_rows: int) -> None:
    """Refuse a file with more rows than can be kept in memory.

    Raises:
        UserError: naming both amounts.
    """
    check_memory(num_rows * ROW_BYTES, f"{path}: {num_rows:,} rows", "divide the file")


def read_group(
    file: Any, path: Path, group: int, columns: Sequence[str], share: float = SHARE_FOR_IMAGES
) -> Any:
    """Some columns of a row group as a `pyarrow.Table`.

    Args:
        file: the open `pyarrow.parquet.ParquetFile`.
        share: of the free memory that they may take.

    Raises:
        UserError: they do not fit in memory.
        ValueError: a page header is damaged.
        pyarrow.ArrowException, OSError: another part of the file is.
    """
    import pyarrow  # type: ignore[import-untyped]

    found = list(_pages(path, file.metadata.row_group(group), columns))
    place = f"{path}: row group {group}"
    dictionary = max((page.num_bytes for page in found if page.is_dictionary), default=0)
    if dictionary > MAX_DICTIONARY_BYTES:
        raise UserError(f"{place} has a dictionary of {dictionary:,} bytes", _HINT)
    check_memory(sum(page.num_bytes for page in found) / share, place, _HINT)
    batch_rows = max(1, min(BATCH_ROWS, BATCH_BYTES // max(1, dictionary)))
    limit, taken, batches = share * free_memory_bytes(), 0, []
    for batch in file.iter_batches(batch_rows, row_groups=[group], columns=list(columns), use_threads=False):
        taken += batch.nbytes
        if taken > limit:
            raise UserError(f"{place} does not fit in memory", _HINT)
        batches.append(batch)
    if not batches:
        return file.schema_arrow.empty_table().select(columns)
    return pyarrow.Table.from_batches(batches)


def _pages(path: Path, chunks: Any, columns: Sequence[str]) -> Iterator[Page]:
    """The pages of some columns in a row group, from the metadata of the group."""
    leaves = [chunks.column(index) for index in range(chunks.num_columns)]
    wanted = [
        leaf for leaf in leaves if leaf.path_in_schema.partition(".")[0] in columns or _names(leaf, columns)
    ]
    with open_file(path) as file:
        for leaf in wanted:
            starts = [
                leaf.data_page_offset,
                leaf.dictionary_page_offset if leaf.has_dictionary_page else None,
            ]
            position = min(start for start in starts if start is not None)
            end = position + leaf.total_compressed_size
            while position < end:
                file.seek(position)
                head = PageHeader(file.read(MAX_PAGE_HEADER_BYTES))
                yield Page(head.fields.get(1) == DICTIONARY_PAGE, head.size(2))
                position += head.position + head.size(3)


def _names(leaf: Any, columns: Sequence[str]) -> bool:
    """Whether a leaf belongs to a column with a dot in its name."""
    return any(
        leaf.path_in_schema == column or leaf.path_in_schema.startswith(f"{column}.") for column in columns
    )


class PageHeader:
    """The integers among the fields of a page's header, and where the header ends.

    Raises:
        ValueError: it is damaged, or longer than `MAX_PAGE_HEADER_BYTES`.
    """

    def __init__(self, data: bytes) -> None:
        self.data, self.position = data, 0
        self.fields: dict[int, int] = {}
        try:
            self._struct(self.fields, depth=0)
        except IndexError:
            raise ValueError("a page header is damaged") from None

    def size(self, number: int) -> int:
        """A field with the size of the page."""
        found = self.fields.get(number, -1)
        if not 0 <= found < 2**31:
            raise ValueError("a page header is damaged")
        return found

    def _struct(self, fields: dict[int, int], depth: int) -> None:
        if depth > 10:
            raise ValueError("a page header is damaged")
        number = 0
        while head := self._byte():
            step, kind = head >> 4, head & 15
            number = number + step if step else self._integer()
            value = self._value(kind, depth)
            if value is not None:
                fields[number] = value

    def _value(self, kind: int, depth: int) -> int | None:
        """An integer; None for a value of another kind, which is skipped."""
        if kind in _NUMBERS:
            return self._integer()
        if kind == _STRUCT:
            self._struct({}, depth + 1)
        elif kind == _BINARY:
            self._skip(self._varint())
        elif kind == _DOUBLE:
            self._skip(8)
        elif kind in _LISTS:
            head = self._byte()
            for _ in range(head >> 4 if head >> 4 < 15 else self._varint()):
                self._value(head & 15, depth + 1)
        elif kind == 3:
            self._skip(1)
        elif kind not in _BOOLEANS:  # whose value is the kind itself; a page header has no maps
            raise ValueError("a page header is damaged")
        return None

    def _byte(self) -> int:
        self.position += 1
        return self.data[self.position - 1]

    def _skip(self, num_bytes: int) -> None:
        self.position += num_bytes
        if self.position > len(self.data):
            raise IndexError

    def _varint(self) -> int:
        value = shift = 0
        while (part := self._byte()) & 0x80:
            value |= (part & 0x7F) << shift
            shift += 7
            if shift > 63:
                raise ValueError("a page header is damaged")
        return value | part << shift

    def _integer(self) -> int:
        """A number in zigzag encoding."""
        value = self._varint()
        return value >> 1 ^ -(value & 1)

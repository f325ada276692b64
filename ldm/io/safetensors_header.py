"""The header of a safetensors file, read and checked before any library allocates memory based on it.

8 bytes     N, the length of the header, little-endian
N bytes     JSON: {name: {"dtype", "shape", "data_offsets": [begin, end]}, "__metadata__": {text: text}}
the rest    the tensors one after another, without a gap and without an overlap
"""

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ldm.errors import UserError
from ldm.io.json_files import each_once
from ldm.io.opening import open_file

MAX_HEADER_BYTES = 16 * 2**20
"""Enough for the names and shapes of 100,000 tensors, or for a thousand plus an image and tag lists as metadata."""

MAX_TENSORS = 100_000
MAX_BRACKETS = 5 * MAX_TENSORS  # three for each tensor, plus those in the metadata
MAX_NAME_LENGTH = 1000
MAX_DIMENSIONS = 32
MAX_NUMBERS = 2**48
"""Maximum numbers in one tensor, counting a dimension of 0 as 1, so that no product of sizes can overflow."""

BYTES_OF = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E4M3FNUZ": 1, "F8_E5M2": 1, "F8_E5M2FNUZ": 1,
    "U16": 2, "I16": 2, "F16": 2, "BF16": 2, "U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8, "C64": 8,
}  # fmt: skip
"""Bytes per number of each dtype, by its name in the header."""


@dataclass(frozen=True)
class TensorEntry:
    """One tensor as the header describes it.

    Attributes:
        dtype: a key of `BYTES_OF`.
        begin: offset of its first byte, counted from the end of the header.
        end: offset of the byte after its last.
    """

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def num_numbers(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Header:
    """A complete header: the tensors by name, and the metadata."""

    tensors: Mapping[str, TensorEntry]
    metadata: Mapping[str, str]


def read_header(path: Path) -> Header:
    """Read and check the header of a safetensors file; nothing else is read.

    Its length, counts, dtypes and shapes are checked against the size of the file, so each tensor that is accepted
    here is completely in the file.

    Raises:
        UserError: the file is missing, is not a regular file, or its header is invalid.
    """
    try:
        with open_file(path) as file:
            return _read(file, os.fstat(file.fileno()).st_size)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist", "the folder is incomplete") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})", "restore the file") from None
    except ValueError as error:
        raise UserError(f"{path} is not a valid safetensors file ({error})", "restore the file") from None


def _read(file: BinaryIO, size_bytes: int) -> Header:
    """Raises ValueError that says what is wrong."""
    if size_bytes < 8:
        raise ValueError(f"it has {size_bytes} bytes")
    length = int.from_bytes(file.read(8), "little")
    if length > size_bytes - 8:
        raise ValueError(f"its header of {length:,} bytes extends beyond its end")
    if length > MAX_HEADER_BYTES:
        raise ValueError(f"its header has {length:,} bytes, more than {MAX_HEADER_BYTES:,}")
    fields = _parse(file.read(length))
    metadata = fields.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("its __metadata__ does not map names to strings")
    if len(fields) > MAX_TENSORS:
        raise ValueError(f"it names {len(fields):,} tensors, more than {MAX_TENSORS:,}")
    tensors = {name: _entry(name, value) for name, value in fields.items()}
    _check_layout(tensors, size_bytes - 8 - length)
    return Header(tensors, metadata)


def _parse(raw: bytes) -> dict[str, Any]:
    if not raw.startswith(b"{"):
        raise ValueError("its header is not a JSON object")
    if raw.count(b"{") + raw.count(b"[") > MAX_BRACKETS:  # each would become an object many times larger
        raise ValueError(f"its header has more than {MAX_BRACKETS:,} brackets")
    try:
        fields = json.loads(raw.decode("utf-8"), object_pairs_hook=each_once)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"its header is not JSON: {error}") from None
    assert isinstance(fields, dict), "JSON that begins with {"
    return fields


def _entry(name: str, value: Any) -> TensorEntry:
    """One tensor's dtype, shape and offsets, each of the right type and consistent with the others."""
    if len(name) > MAX_NAME_LENGTH:
        raise ValueError(f"a tensor's name has {len(name):,} characters")
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(
            f"the tensor {name!r} has keys other than dtype, shape and data_offsets, or lacks one"
        )
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BYTES_OF:
        raise ValueError(f"the tensor {name!r} has an unsupported dtype: {str(dtype)[:20]!r}")
    if not _whole_numbers(shape) or not _whole_numbers(offsets) or len(offsets) != 2:
        raise ValueError(f"the tensor {name!r} has a shape or data_offsets that are not whole numbers")
    if len(shape) > MAX_DIMENSIONS or math.prod(max(1, size) for size in shape) > MAX_NUMBERS:
        raise ValueError(f"the tensor {name!r} is larger than any real tensor")
    entry = TensorEntry(dtype, tuple(shape), *offsets)
    if entry.end - entry.begin != entry.num_numbers * BYTES_OF[dtype]:
        by_shape, by_offsets = entry.num_numbers * BYTES_OF[dtype], entry.end - entry.begin
        raise ValueError(
            f"the tensor {name!r} has {by_shape:,} bytes by its shape, {by_offsets:,} by its data_offsets"
        )
    return entry


def _whole_numbers(value: Any) -> bool:
    return isinstance(value, list) and all(type(n) is int and 0 <= n < 2**63 for n in value)


def _check_layout(tensors: Mapping[str, TensorEntry], data_bytes: int) -> None:
    """The tensors must fill the rest of the file without gaps or overlaps."""
    position = 0
    for name, entry in sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin != position:
            what = "overlaps another" if entry.begin < position else "comes after a gap"
            raise ValueError(f"the tensor {name!r} {what}")
        position = entry.end
    if position != data_bytes:
        raise ValueError(f"its tensors take {position:,} bytes, but it contains {data_bytes:,}")

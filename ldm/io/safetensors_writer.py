"""Write safetensors, one tensor at a time: the same bytes for the same content, and no number that was lost in a cast.

The safetensors library holds the whole file in memory, lists the metadata in random order, and casts nothing. Here the
order is fixed: tensors as the library has them (by number format, then by name), metadata by key.
"""

import hashlib
import io
import json
import shutil
import sys
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from ldm.errors import UserError

TENSORS_SHA256 = "-sha-256-of-all-bytes-after-the-header-".center(64, "-")
"""In a value of the metadata: stands for that hash, in hex."""

NAMES = {
    torch.uint64: "U64", torch.int64: "I64", torch.float64: "F64", torch.complex64: "C64", torch.float32: "F32",
    torch.uint32: "U32", torch.int32: "I32", torch.bfloat16: "BF16", torch.float16: "F16", torch.uint16: "U16",
    torch.int16: "I16", torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2",
    torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
"""Number formats by their names in the header, in the order in which the library stores them."""

WIDER = {torch.float16: "bfloat16 or float32", torch.bfloat16: "float32"}
"""What to choose instead of a format that is too narrow."""

assert sys.byteorder == "little", "the format is little-endian, and tensors are written as they are in memory"


def write_safetensors(
    file: BinaryIO,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str] | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Write a safetensors file; only one tensor at a time is copied.

    Args:
        file: empty and seekable.
        tensors: on any device, of any strides; tensors that share memory are stored separately.
        metadata: text for the header; `TENSORS_SHA256` in it is replaced.
        dtype: the number format to store floating-point numbers in; by default each tensor's own.

    Raises:
        UserError: a finite number is not finite in `dtype`.
    """
    names = sorted(tensors, key=lambda name: (_rank(tensors[name], dtype), name))
    stored = {name: (_stored_as(tensors[name], dtype), tensors[name].shape) for name in names}
    file.write(header_bytes(stored, metadata))
    digest = hashlib.sha256()
    for name in names:
        data = _bytes_of(cast_finite(name, tensors[name].detach(), dtype))
        digest.update(data)
        file.write(data)
    if any(TENSORS_SHA256 in value for value in (metadata or {}).values()):
        known = {key: _hashed(value, digest.hexdigest()) for key, value in (metadata or {}).items()}
        file.seek(0)
        file.write(header_bytes(stored, known))


def safetensors_bytes(
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str] | None = None,
    dtype: torch.dtype | None = None,
) -> bytes:
    """A safetensors file as bytes; arguments and errors as of `write_safetensors`."""
    buffer = io.BytesIO()
    write_safetensors(buffer, tensors, metadata, dtype)
    return buffer.getvalue()


def header_bytes(
    stored: Mapping[str, tuple[torch.dtype, torch.Size]], metadata: Mapping[str, str] | None
) -> bytes:
    """The length and the header for tensors that follow in this order."""
    fields: dict[str, Any] = {}
    if metadata is not None:
        fields["__metadata__"] = dict(sorted(metadata.items()))
    fields |= _entries(stored)
    return pack_header(fields)


def replace_metadata(path: Path, metadata: Mapping[str, str]) -> None:
    """Give a safetensors file other metadata; the tensors keep their bytes and their order.

    Raises:
        OSError: the disk is full or not writable.
    """
    temporary = path.with_name(f".tmp-{path.name}-{uuid.uuid4().hex[:8]}")
    try:
        with path.open("rb") as before, temporary.open("wb") as after:
            fields = json.loads(before.read(int.from_bytes(before.read(8), "little")))
            fields.pop("__metadata__", None)
            after.write(pack_header({"__metadata__": dict(sorted(metadata.items())), **fields}))
            shutil.copyfileobj(before, after, 2**20)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def pack_header(fields: Mapping[str, Any]) -> bytes:
    """The fields of a header as JSON, after its length; padded so that the numbers begin at a multiple of 8 bytes."""
    text = json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _entries(stored: Mapping[str, tuple[torch.dtype, torch.Size]]) -> dict[str, Any]:
    found, end = {}, 0
    for name, (dtype, shape) in stored.items():
        begin, end = end, end + shape.numel() * dtype.itemsize
        found[name] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [begin, end]}
    return found


def cast_finite(name: str, tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """A tensor in the number format to store it in.

    Raises:
        UserError: a finite number becomes infinite. Names the tensor, the number, and the formats that hold it.
    """
    cast = tensor.to(_stored_as(tensor, dtype))
    if cast is tensor or not cast.is_floating_point() or bool(cast.isfinite().all()):
        return cast
    lost = tensor[tensor.isfinite() & ~cast.isfinite()]
    if len(lost):
        largest = float(lost.abs().max())
        raise UserError(
            f"{name} has a value of {largest:.3g}, which is infinite in {str(cast.dtype).removeprefix('torch.')}",
            f"choose {WIDER.get(cast.dtype, 'float32')}",
        )
    return cast


def _stored_as(tensor: Tensor, dtype: torch.dtype | None) -> torch.dtype:
    return tensor.dtype if dtype is None or not tensor.is_floating_point() else dtype


def _rank(tensor: Tensor, dtype: torch.dtype | None) -> int:
    return list(NAMES).index(_stored_as(tensor, dtype))


def _bytes_of(tensor: Tensor) -> Any:
    """The bytes of a tensor, copied: FSDP frees storages by resizing them."""
    copied = (
        tensor.detach().cpu().contiguous().clone()
    )  # a storage that NumPy sees cannot be resized any more
    return copied.reshape(-1).view(torch.uint8).numpy()


def _hashed(value: str, digest: str) -> str:
    return value.replace(TENSORS_SHA256, digest)

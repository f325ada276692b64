"""safetensors headers: what the library reads is accepted; false headers are refused before memory is allocated."""

import os
import tracemalloc
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ldm.errors import UserError
from ldm.io.files import open_tensors, read_tensors
from ldm.io.safetensors_header import BYTES_OF, MAX_HEADER_BYTES, read_header
from tests.support.hostile_files import LIES, tensor, write_safetensors

DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int8, torch.uint8, torch.bool,
    torch.float8_e4m3fn, torch.float8_e5m2, torch.complex64, torch.uint16,
]  # fmt: skip


def test_a_header_is_read_as_the_library_wrote_it(tmp_path: Path) -> None:
    tensors = {str(dtype): torch.zeros(3, 2).to(dtype) for dtype in DTYPES}
    tensors |= {"none": torch.zeros(0, 5), "one": torch.tensor(1.0), "line": torch.zeros(7)}
    save_file(tensors, tmp_path / "a", {"format": "pt", "note": '{"a": [1, "]"]}'})
    header = read_header(tmp_path / "a")
    assert {name: entry.shape for name, entry in header.tensors.items()} == {
        name: tuple(each.shape) for name, each in tensors.items()
    }
    for name, entry in header.tensors.items():
        assert BYTES_OF[entry.dtype] == tensors[name].element_size()
        assert entry.num_numbers == tensors[name].numel()
    assert header.metadata == {"format": "pt", "note": '{"a": [1, "]"]}'}
    assert read_tensors(tmp_path / "a").keys() == tensors.keys()


def test_a_file_without_tensors_is_valid(tmp_path: Path) -> None:
    save_file({}, tmp_path / "a")
    assert read_header(tmp_path / "a").tensors == {} == read_tensors(tmp_path / "a")


@pytest.mark.parametrize("kind", LIES)
def test_a_false_header_is_refused(tmp_path: Path, kind: str) -> None:
    header, message = LIES[kind]
    path = write_safetensors(tmp_path / "a.safetensors", header)
    for read in (read_header, read_tensors):
        with pytest.raises(UserError, match=r"a\.safetensors is not a valid safetensors file") as caught:
            read(path)
        assert message in str(caught.value)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 2000 + len(str(path))


@pytest.mark.parametrize("size_bytes", [0, 7, 8, 40])
def test_a_truncated_file_is_refused(tmp_path: Path, size_bytes: int) -> None:
    path = write_safetensors(tmp_path / "a", tensor())
    os.truncate(path, size_bytes)
    with pytest.raises(UserError, match="not a valid safetensors file"):
        read_header(path)


@pytest.mark.parametrize("length", [MAX_HEADER_BYTES + 1, 2**40, 2**63])
def test_a_header_of_any_length_takes_no_memory(tmp_path: Path, length: int) -> None:
    path = write_safetensors(tmp_path / "a", tensor(), length=length)
    os.truncate(path, min(8 + length, 2**32))  # a sparse file, which takes no space on the disk
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match=r"its header (of|has) [\d,]+ bytes"):
            read_header(path)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_brackets_are_counted_before_they_become_objects(tmp_path: Path) -> None:
    raw = b'{"a": [' + b"[]," * 2_000_000 + b"0]}"
    path = write_safetensors(tmp_path / "a", raw)
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match="brackets"):
            read_header(path)
        assert tracemalloc.get_traced_memory()[1] < 2 * len(raw)
    finally:
        tracemalloc.stop()


def test_pipes_and_devices_are_refused_without_reading(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero"), tmp_path):
        with pytest.raises(UserError, match=r"not a regular file|Is a directory"):
            read_header(path)
    with pytest.raises(UserError, match="does not exist"):
        read_header(tmp_path / "gone")


def test_tensors_are_read_one_by_one_after_the_header_is_checked(tmp_path: Path) -> None:
    save_file({"a": torch.arange(3), "b": torch.ones(2)}, tmp_path / "a")
    with open_tensors(tmp_path / "a") as file:
        assert torch.equal(file.get_tensor("a"), load_file(tmp_path / "a")["a"])
    with pytest.raises(OSError, match="mine"), open_tensors(tmp_path / "a"):
        raise OSError("mine")  # not an error of the file
    with pytest.raises(UserError, match="overlaps"):
        open_tensors(write_safetensors(tmp_path / "b", LIES["overlap"][0])).__enter__()

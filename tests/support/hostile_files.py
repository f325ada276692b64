"""Malicious files: safetensors headers with false statements, and files that would run code if they were loaded."""

import json
from pathlib import Path
from typing import Any

DATA = bytes(8)
TWO_NUMBERS = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def write_safetensors(path: Path, header: Any, data: bytes = DATA, *, length: int | None = None) -> Path:
    """A file with this header, given as an object or as bytes; `length` replaces the header's true length."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes((len(raw) if length is None else length).to_bytes(8, "little") + raw + data)
    return path


def tensor(**changes: Any) -> dict[str, Any]:
    """A header of one tensor with two numbers, with changes."""
    return {"a": TWO_NUMBERS | changes}


LIES: dict[str, tuple[Any, str]] = {
    "not an object": (b"[1]", "not a JSON object"),
    "not JSON": (b"{]", "not JSON"),
    "not UTF-8": (b'{"\xff": 1}', "not JSON"),
    "too deep": (b'{"a": ' + b"[" * 100_000, "not JSON"),
    "too many brackets": (b'{"a": ' + b"[" * 600_000, "more than 500,000 brackets"),
    "a name twice": (
        b'{"a": %s, "a": %s}' % ((json.dumps(TWO_NUMBERS).encode(),) * 2),
        "'a' occurs twice",
    ),
    "a long name": ({"a" * 2000: TWO_NUMBERS}, "2,000 characters"),
    "metadata of numbers": (tensor() | {"__metadata__": {"a": 1}}, "__metadata__"),
    "metadata not an object": (tensor() | {"__metadata__": []}, "__metadata__"),
    "entry not an object": ({"a": [1]}, "keys other than dtype, shape and data_offsets"),
    "entry with another key": (tensor(offset=3), "keys other than dtype, shape and data_offsets"),
    "unknown dtype": (tensor(dtype="F128"), "'F128'"),
    "dtype not a string": (tensor(dtype=["F32"]), "unsupported dtype"),
    "shape of text": (tensor(shape="2"), "not whole numbers"),
    "shape of fractions": (tensor(shape=[2.0]), "not whole numbers"),
    "shape of booleans": (tensor(shape=[True, 2]), "not whole numbers"),
    "negative shape": (tensor(shape=[-1, -2]), "not whole numbers"),
    "huge shape": (tensor(shape=[2**40, 2**40]), "larger than any real tensor"),
    "huge and empty": (tensor(shape=[0, 2**60], data_offsets=[0, 0]), "larger than any real tensor"),
    "many dimensions": (tensor(shape=[1] * 100 + [2]), "larger than any real tensor"),
    "shape beyond the bytes": (tensor(shape=[3]), "12 bytes by its shape, 8 by its data_offsets"),
    "bytes beyond the file": (tensor(shape=[2**36], data_offsets=[0, 2**38]), "but it contains 8"),
    "offsets backwards": (tensor(data_offsets=[8, 0]), "by its data_offsets"),
    "one offset": (tensor(data_offsets=[0]), "not whole numbers"),
    "overlap": ({"a": TWO_NUMBERS, "b": TWO_NUMBERS}, "'b' overlaps another"),
    "gap": (tensor(shape=[1], data_offsets=[4, 8]), "'a' comes after a gap"),
    "bytes of no tensor": (tensor(shape=[1], data_offsets=[0, 4]), "take 4 bytes, but it contains 8"),
}
"""Headers for eight bytes of data, and part of the error message for each."""


def pickle_that_makes(marker: Path) -> bytes:
    """A pickle that makes a folder when it is loaded: a call of `os.mkdir`, written by hand."""
    return (
        b"\x80\x02cos\nmkdir\nX" + len(str(marker)).to_bytes(4, "little") + str(marker).encode() + b"\x85R."
    )


def code_that_makes(marker: Path) -> str:
    """The source of a module that makes a folder when it is imported."""
    return f"import os\nos.mkdir({str(marker)!r})\n"


def edit_json(path: Path, **changes: Any) -> None:
    """Change some keys of a JSON object."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))

"""Safetensors are written tensor by tensor: the library's bytes, in a fixed order, and no number lost in a cast."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save

from ldm.errors import UserError
from ldm.io.files import write_tensors
from ldm.io.safetensors_header import read_header
from ldm.io.safetensors_writer import NAMES, TENSORS_SHA256, safetensors_bytes


def test_the_bytes_are_those_of_the_library() -> None:
    tensors = {}
    for number, dtype in enumerate(NAMES):
        tensors[f"b{number}"] = torch.ones(2, 3).to(dtype)
        tensors[f'aé"\n{number}'] = torch.zeros(()).to(dtype)
        tensors[f"empty{number}"] = torch.empty(0, 4).to(dtype)
    assert safetensors_bytes(tensors) == save(tensors)
    assert safetensors_bytes(tensors, {"format": "pt"}) == save(tensors, {"format": "pt"})


def test_the_same_content_gives_the_same_bytes() -> None:
    """The library's metadata is in another order in every process, and here with every number of keys."""
    keys = [f"modelspec.{letter}" for letter in "hgfedcba"]
    one = safetensors_bytes({"a": torch.ones(2), "b": torch.zeros(1)}, dict.fromkeys(keys, "x"))
    other = safetensors_bytes({"b": torch.zeros(1), "a": torch.ones(2)}, dict.fromkeys(reversed(keys), "x"))
    assert one == other
    header = json.loads(one[8 : 8 + int.from_bytes(one[:8], "little")])
    assert list(header["__metadata__"]) == sorted(keys)


def test_shared_and_strided_tensors_are_stored_apart(tmp_path: Path) -> None:
    whole = torch.arange(12.0).reshape(3, 4)
    write_tensors(tmp_path / "a.safetensors", {"all": whole, "turned": whole.T, "row": whole[1]})
    found = load_file(tmp_path / "a.safetensors")
    assert torch.equal(found["turned"], whole.T) and torch.equal(found["row"], whole[1])


def test_the_hash_of_the_numbers_is_filled_in(tmp_path: Path) -> None:
    write_tensors(tmp_path / "a.safetensors", {"w": torch.ones(3)}, {"hash": f"0x{TENSORS_SHA256}"})
    assert read_header(tmp_path / "a.safetensors").metadata == {
        "hash": "0x" + hashlib.sha256(torch.ones(3).numpy().tobytes()).hexdigest()
    }


@pytest.mark.parametrize(
    ("value", "dtype", "hint"),
    [
        (1e5, torch.float16, "choose bfloat16 or float32"),
        (-7e4, torch.float16, "choose bfloat16 or float32"),
        (3.4e38, torch.bfloat16, "choose float32"),
    ],
)
def test_a_number_that_a_cast_would_lose_is_refused_by_name(
    tmp_path: Path, value: float, dtype: torch.dtype, hint: str
) -> None:
    tensors = {"fine": torch.ones(2), "unet.conv.weight": torch.tensor([1.0, value])}
    with pytest.raises(
        UserError, match=r"unet\.conv\.weight has a value of .* infinite in .*float16"
    ) as caught:
        write_tensors(tmp_path / "a.safetensors", tensors, dtype=dtype)
    assert caught.value.hint == hint
    assert list(tmp_path.iterdir()) == []


def test_numbers_that_are_not_finite_already_are_kept(tmp_path: Path) -> None:
    """They are the model's own, and `ldm verify` names them; other formats than float are not cast."""
    tensors = {"w": torch.tensor([1.0, float("inf"), float("nan")]), "ids": torch.arange(3)}
    write_tensors(tmp_path / "a.safetensors", tensors, dtype=torch.float16)
    found = load_file(tmp_path / "a.safetensors")
    assert found["w"].isfinite().tolist() == [True, False, False]
    assert found["ids"].dtype == torch.int64

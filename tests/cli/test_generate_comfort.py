"""`ldm generate`: seeds, JSON, quiet and short options; `ldm info --tensors`. No model is loaded."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from ldm.cli.app import app
from ldm.cli.generate import _described, _list_images, _plan
from ldm.cli.options import read_seed
from ldm.errors import UserError
from ldm.generation.output import Target


def names(prompts: list[str], target: Target, **settings: Any) -> list[str]:
    _, asked = _plan(prompts, None, (None, None), None, settings)
    return [target.path(image).name for image in _list_images(asked, target)]


def test_a_second_call_makes_other_images(tmp_path: Path) -> None:
    target = Target(tmp_path)
    first = names(["a", "b"], target, num_images=2)
    assert first == ["0001-a-s0.png", "0002-a-s1.png", "0003-b-s0.png", "0004-b-s1.png"]
    for name in first:
        (tmp_path / name).touch()
    assert names(["a", "b"], target, num_images=2)[0] == "0001-a-s1.png"  # free: 0001 has seed 0
    (tmp_path / "0001-a-s1.png").touch()
    assert names(["a"], target) == ["0001-a-s2.png"]
    for kept in (Target(tmp_path, overwrite=True), Target(tmp_path, resume=True)):
        assert names(["a"], kept) == ["0001-a-s0.png"]
    assert names(["a"], target, seed=0) == ["0001-a-s0.png"]  # what was asked for, and refused later


def test_seeds_as_they_are_written() -> None:
    assert [read_seed(text) for text in (None, "7", " 12 ")] == [None, 7, 12]
    drawn = {read_seed(text) for text in ("random", "-1", "RANDOM") for _ in range(3)}
    assert len(drawn) > 1 and all(seed is not None and 0 <= seed < 2**32 for seed in drawn)
    for wrong in ("-2", "1.5", "x", "", "٣"):
        with pytest.raises(UserError, match=r"--seed .*: it must be random, or a whole number from 0 to"):
            read_seed(wrong)


def test_json_names_path_prompt_and_seed(tmp_path: Path) -> None:
    target = Target(tmp_path, grid=True)
    _, asked = _plan(["a"], None, (None, None), None, {"seed": 3})
    found = _described(_list_images(asked, target), target)
    assert json.loads(json.dumps(found)) == {
        "images": [{"path": str(tmp_path / "0001-a-s3.png"), "prompt": "a", "seed": 3}],
        "grid": str(tmp_path / "grid.png"),
    }


def test_short_options_and_completion() -> None:
    text = CliRunner().invoke(app, ["generate", "--help"]).stdout
    for option in ("-o", "-n", "-q", "--json", "N|random"):
        assert option in text
    assert "--install-completion" in CliRunner().invoke(app, ["--help"]).stdout


def test_tensors_of_any_file(tmp_path: Path) -> None:
    path = tmp_path / "lora.safetensors"
    save_file(
        {"up": torch.zeros(4, 2), "alpha": torch.tensor(1.0, dtype=torch.float16)}, path, {"by": "\x1b[31mme"}
    )
    text = CliRunner().invoke(app, ["info", str(path), "--tensors"]).stdout
    assert text.splitlines() == [
        "lora.safetensors: 2 tensors, 9 values",
        "  metadata by: \\x1b[31mme",
        "  alpha  F16   one number",
        "  up     F32   4 x 2",
    ]
    found = json.loads(CliRunner().invoke(app, ["info", str(tmp_path), "--tensors", "--json"]).stdout)
    assert found["lora.safetensors"]["tensors"]["up"] == {"dtype": "F32", "shape": [4, 2]}
    result = CliRunner().invoke(app, ["info", str(tmp_path / "none"), "--tensors"])
    assert result.exit_code == 2 and "no model" in result.stderr

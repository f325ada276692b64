"""The model of a checkpoint is what the run would have written if it had ended there."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from ldm.cli.app import app
from ldm.cli.checkpoint import model_of
from ldm.errors import UserError
from ldm.export.export_source import load_source
from ldm.io.files import read_tensors
from ldm.models.loading.model import load_parts, save_parts
from tests.support.tiny_launch import forked
from tests.support.tiny_models import make_sd1
from tests.support.tiny_runs import COMMON, DENOISER, train_parts, write_config, write_squares
from train.denoiser import main as train_denoiser
from train.run.from_checkpoint import main, write_model


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six steps from scratch, saved every three, with averages of two widths."""
    root = tmp_path_factory.mktemp("scratch")
    optim = {**COMMON["optim"], "average": {"widths": [0.05, 0.2]}}
    return _trained(root, {**DENOISER, "parts": train_parts(root)}, optim=optim)


@pytest.fixture(scope="module")
def lora_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA on a tiny model, with one average with a decay."""
    root = tmp_path_factory.mktemp("lora")
    save_parts(make_sd1(root / "tokenizer"), root / "base")
    program = {"program": "denoiser", "base": str(root / "base"), "trainable": "lora", "lora": {"rank": 2}}
    return _trained(root, {**program, "preview": {"prompts": ["red"], "num_inference_steps": 2}})


def _trained(root: Path, program: dict[str, Any], **changes: Any) -> Path:
    data = root / "data" if (root / "data").exists() else write_squares(root / "squares")
    config = write_config(root / "run.yaml", program, data, root / "run", save_every=3, **changes)
    assert train_denoiser([str(config)]) == 0
    return root / "run"


def weights_of(folder: Path) -> list[Tensor]:
    parts = load_parts(folder)
    return [p for network in (parts.denoiser, parts.text_encoder) for p in network.parameters()]


def same(one: Path, other: Path) -> bool:
    return all(torch.equal(a, b) for a, b in zip(weights_of(one), weights_of(other), strict=True))


@pytest.mark.parametrize("kind", ["run", "lora_run"])
def test_the_last_checkpoint_is_the_runs_result(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    folder: Path = request.getfixturevalue(kind)
    write_model(folder / "checkpoints/step-000006", tmp_path / "last")
    write_model(folder / "checkpoints/step-000003", tmp_path / "earlier")
    assert same(tmp_path / "last", folder / "pipeline")
    assert not same(tmp_path / "earlier", folder / "pipeline")


def test_each_average_and_the_trained_weights_can_be_had(run: Path, tmp_path: Path) -> None:
    checkpoint = run / "checkpoints/step-000006"
    for weights in ("average", "trained", "0.05", "0.2"):
        write_model(checkpoint, tmp_path / weights, weights)
    assert same(tmp_path / "average", tmp_path / "0.05")
    stored = {"trained": ("weights", ""), "0.2": ("average", "width-0.2/")}
    for weights, (file, prefix) in stored.items():
        tensors = read_tensors(checkpoint / f"{file}.safetensors")
        unet = load_parts(tmp_path / weights).denoiser.unet
        assert torch.equal(unet.conv_in.weight, tensors[f"{prefix}denoiser.unet.conv_in.weight"])
    assert not same(tmp_path / "trained", tmp_path / "0.2")


def test_what_the_run_did_not_keep_is_refused(
    run: Path, lora_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder, weights in ((run, "0.3"), (lora_run, "0.05")):
        assert main([str(folder / "checkpoints/step-000006"), str(tmp_path / "out"), weights]) == 2
        assert f"unknown average in {folder}" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_damaged_checkpoint_is_refused(lora_run: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(lora_run, tmp_path / "run")
    path = tmp_path / "run/checkpoints/step-000003/average.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x00")
    with pytest.raises(UserError, match="has changed since it was written"):
        write_model(path.parent, tmp_path / "out")


def test_the_command_names_run_and_step(lora_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", forked)
    with model_of(str(lora_run / "checkpoints/step-000003")) as (folder, more):
        source = load_source(folder, **more)
        assert (source.model_id, source.run) == ("run-step-000003", lora_run)
        assert source.lora is not None
    assert not Path(folder).exists()


def test_weights_of_what_has_no_checkpoint_are_refused(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["export", "emoji", str(tmp_path / "out"), "--weights", "trained"])
    assert done.exit_code == 2 and "emoji has no checkpoint" in done.stderr


def test_a_checkpoint_is_not_combined_with_another_base(lora_run: Path, tmp_path: Path) -> None:
    config = lora_run.parent / "base" / "vae" / "config.json"
    before = config.read_text()
    config.write_text(json.dumps(json.loads(before) | {"scaling_factor": 0.5}))
    try:
        with pytest.raises(UserError, match=r"the model has changed since .*step-000006 was written: vae"):
            write_model(lora_run / "checkpoints/step-000006", tmp_path / "mixed")
    finally:
        config.write_text(before)
    assert not (tmp_path / "mixed").exists()

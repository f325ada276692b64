"""`ldm ledger` on a real run: the loss of each sample by itself, the files written, what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ldm.config import validate
from ldm.data.batches import collate
from ldm.data.fingerprint import decode_fingerprint
from ldm.data.order import SampleKey
from ldm.data.prepare import prepare
from ldm.data.sources.reading import read_sources
from ldm.data.survey import survey
from tests.support.tiny_models import make_sd1
from tests.support.tiny_runs import COLORS, write_config, write_squares
from tests.support.tiny_validation import CPU, NUM_DRAWS, NUM_SAMPLES, Network, held_out
from train.denoiser import main as train_denoiser
from train.loop.sample_losses import sample_losses
from train.run.ledger import hashes_without_repeats, main
from train.settings.denoiser import DenoiserSettings


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three steps of a tiny UNet, all kept."""
    from ldm.models.loading.model import save_parts

    root = tmp_path_factory.mktemp("ledger")
    save_parts(make_sd1(root / "tokenizer"), root / "base")
    program: dict[str, Any] = {"program": "denoiser", "base": str(root / "base"), "trainable": "unet"}
    program["preview"] = {"prompts": ["red"], "num_inference_steps": 1}
    config = write_config(
        root / "run.yaml", program, write_squares(root / "squares"), root / "run",
        num_steps=3, save_every=1, keep_every=1,
    )  # fmt: skip
    assert train_denoiser([str(config)]) == 0
    return root / "run"


def test_the_losses_of_samples_sum_to_the_batchs_loss() -> None:
    """Not the batch's mean as every sample's loss, as a peer logs it (museum 12)."""
    network, samples = Network(), held_out()
    each = sample_losses(network, samples, batch_size=3 * NUM_DRAWS, device=CPU)
    assert each.shape == (NUM_SAMPLES, NUM_DRAWS)
    network.eval()
    items = [item for i in range(NUM_SAMPLES) for item in samples[SampleKey(0, i)]]
    with torch.no_grad():
        batch = network(collate(items))["loss"]
    assert float(each.sum()) == pytest.approx(float(batch.double().sum()), rel=1e-6)
    assert len({round(float(value), 6) for value in each.mean(dim=1)}) == NUM_SAMPLES


def test_the_same_noise_every_time_whatever_the_batch() -> None:
    network, samples = Network(), held_out()
    first = sample_losses(network, samples, batch_size=100, device=CPU)
    alone = sample_losses(network, samples, batch_size=1, device=CPU)
    assert torch.allclose(first, alone, rtol=1e-5)
    assert isinstance(network, nn.Module) and network.training  # as it was before


def test_a_runs_ledger_lists_every_sample_and_leaves_the_run_alone(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
    drop = tmp_path / "drop.csv"
    assert main([str(run), str(tmp_path / "out"), "3", "2", str(drop)]) == 0
    facts = json.loads(capsys.readouterr().out.splitlines()[-1])
    found = json.loads((tmp_path / "out/ledger.json").read_text())
    assert found["num_samples"] == facts["num_samples"] == 7
    assert (found["early_step"], found["step"]) == (1, 3)
    assert {each["caption"] for each in found["samples"]} >= {"red", "cyan"}
    assert all(each["loss"] > 0 and each["fall"] is not None for each in found["samples"])
    assert "red.png" in (tmp_path / "out/ledger.json").read_text()
    assert "Ledger of" in (tmp_path / "out/ledger.html").read_text()
    assert drop.read_text().startswith("sample_id,reason")
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()} == before
    dropped = {
        each["sample_id"] for each in found["samples"] if {"caption", "duplicate"} & {*each["reasons"]}
    }
    data = run.parent / "squares"
    program = {"program": "denoiser", "base": str(run.parent / "base"), "trainable": "unet", "num_steps": 1}
    config = write_config(
        tmp_path / "next.yaml", program, data, tmp_path / "next",
        preview={"prompts": ["red"], "num_inference_steps": 1},
        data={"path": str(data), "height": 16, "width": 16, "leave_out_file": str(drop)},
        optim={"num_warmup_steps": 0},
    )  # fmt: skip
    assert train_denoiser([str(config)]) == 0
    (known,) = (tmp_path / "next/checkpoints").glob("*/data.json")
    used = decode_fingerprint(known.read_bytes())
    every = {each["sample_id"] for each in found["samples"]}
    assert used is not None and 0 < len(dropped) < 7 and used.samples.keys() == every - dropped


def test_repeats_are_no_near_duplicates(tmp_path: Path) -> None:
    source = {"path": str(write_squares(tmp_path / "squares")), "repeats": 2}
    data = {"sources": [source], "height": 16, "width": 16}
    tree = {"program": "denoiser", "run_dir": "x", "num_steps": 1, "base": "y", "data": data}
    settings = validate(DenoiserSettings, {**tree, "optim": {"num_warmup_steps": 0}})
    reading = read_sources(settings.data.all_sources())
    placed = prepare(reading, survey(reading.samples, None), settings.data, multiple=8, seed=0).placed
    assert len(placed) == 14
    assert set(hashes_without_repeats(placed, settings)) == {f"{color}.png" for color in COLORS}


def test_what_has_no_ledger_is_one_line(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path), str(tmp_path / "out"), "2", "1"]) == 2
    assert "is not a run" in capsys.readouterr().err
    (tmp_path / "config.yaml").write_text("program: autoencoder\n")
    assert main([str(tmp_path), str(tmp_path / "out"), "2", "1"]) == 2
    assert "program autoencoder" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()

"""Sharded runs of the denoiser of both families (FSDP2, two processes with gloo): they learn as one process does.

Previews do not change them, nor block them.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from ldm.io.files import read_tensors
from ldm.models.adapters.folder import LORA_FILE
from ldm.models.loading.model import load_parts, save_parts
from tests.support.launch_driver import Job
from tests.support.tiny_launch import train_together
from tests.support.tiny_models import make_sd1, make_sdxl
from tests.support.tiny_runs import DENOISER, write_config, write_squares
from train import denoiser

pytestmark = pytest.mark.slow  # its runs take about twenty seconds a family

FAMILIES = {"sd1": make_sd1, "sdxl": make_sdxl}
TRAINABLE = ("unet", "unet+text_encoder")
LOKR = {"kind": "lokr", "rank": 2, "factor": 4, "target_modules": "all", "text_encoder": True}
PERIODS = {"drawn": 2, "plain": 100}
"""Steps between previews: two in a run of four, and one after the last step."""


@pytest.fixture(scope="module", params=FAMILIES)
def folder(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """Five runs of two processes: `lokr`, and four such as `unet-drawn`."""
    folder = tmp_path_factory.mktemp(request.param)
    save_parts(FAMILIES[request.param](folder / "tokenizer"), folder / "base")
    write_squares(folder / "data")
    runs = {
        f"{trainable}-{name}": {"trainable": trainable, "preview_every": every}
        for trainable in TRAINABLE
        for name, every in PERIODS.items()
    }
    runs["lokr"] = {"trainable": "lora", "lora": LOKR}
    train_together([job(folder, name, sharding="full", **changes) for name, changes in runs.items()])
    return folder


def job(folder: Path, name: str, **changes: Any) -> Job:
    """A run of four steps in `folder`."""
    run_dir = folder / name
    changes = {"base": str(folder / "base"), "model": {}, "num_steps": 4, **changes}
    config = write_config(run_dir.with_suffix(".yaml"), DENOISER, folder / "data", run_dir, **changes)
    return {"do": "denoiser", "run_dir": str(run_dir), "config": str(config)}


def rows(run_dir: Path) -> list[dict[str, float]]:
    found = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [row for row in found if "loss" in row]


@pytest.mark.parametrize(
    ("sharded", "changes"),
    [
        ("unet+text_encoder-plain", {"trainable": "unet+text_encoder"}),
        ("lokr", {"trainable": "lora", "lora": LOKR}),
    ],
)
def test_shards_learn_as_one_process_does(folder: Path, sharded: str, changes: dict[str, Any]) -> None:
    """Up to rounding: text encoders, their projection and what the UNet is told besides are gathered where needed."""
    whole = job(folder, f"{sharded}-whole", **changes)
    assert denoiser.main([whole["config"]]) == 0
    one, two = rows(Path(whole["run_dir"])), rows(folder / sharded)
    for key in ("loss", "grad_norm"):
        assert [row[key] for row in two] == pytest.approx([row[key] for row in one], rel=1e-3)
    first, last = (
        read_tensors(run / "checkpoints/step-000004/weights.safetensors")
        for run in (Path(whole["run_dir"]), folder / sharded)
    )
    assert {name: t.shape for name, t in first.items()} == {name: t.shape for name, t in last.items()}
    moved = torch.cat([(last[name] - first[name]).abs().flatten() for name in first])
    assert moved.mean() < 1e-5  # where a gradient is almost zero, Adam's step depends on how it was rounded


def test_the_lokr_of_a_sharded_run_has_its_averaged_weights(folder: Path) -> None:
    average = read_tensors(folder / "lokr/checkpoints/step-000004/average.safetensors")
    stored = read_tensors(folder / "lokr/pipeline" / LORA_FILE).values()
    written = {tensor.double().sum().item() for tensor in stored}
    assert average and {tensor.double().sum().item() for tensor in average.values()} <= written


@pytest.mark.parametrize("trainable", TRAINABLE)
def test_previews_of_shards_are_drawn_and_change_nothing(folder: Path, trainable: str) -> None:
    drawn, plain = (folder / f"{trainable}-{name}" for name in PERIODS)
    pictures = [sorted(path.name for path in (run / "previews").iterdir()) for run in (drawn, plain)]
    assert pictures == [[f"step-{step:06d}.png" for step in (2, 4)], ["step-000004.png"]]
    assert [row["step"] for row in rows(drawn)] == [1, 2, 3, 4]
    for name in ("weights", "average"):
        one, two = (
            read_tensors(run / f"checkpoints/step-000004/{name}.safetensors") for run in (plain, drawn)
        )
        assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)
    last = (run / "previews/step-000004.png" for run in (plain, drawn))
    assert len({path.read_bytes() for path in last}) == 1


@pytest.mark.parametrize("trainable", TRAINABLE)
def test_the_model_of_a_sharded_run_has_its_averaged_weights(folder: Path, trainable: str) -> None:
    run_dir = folder / f"{trainable}-plain"
    average = read_tensors(run_dir / "checkpoints/step-000004/average.safetensors")
    parts = load_parts(run_dir / "pipeline")
    own = {"denoiser": parts.denoiser, "text_encoder": parts.text_encoder}
    written = {f"{part}.{name}": p for part, module in own.items() for name, p in module.named_parameters()}
    assert all(torch.equal(written[name], tensor) for name, tensor in average.items())
    assert any(name.startswith("text_encoder") for name in average) == (trainable != "unet")

"""Previews do not change a sharded run of the denoiser (FSDP2, two processes with gloo), nor block it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from ldm.io.files import read_tensors
from ldm.models.loading.model import load_parts, save_parts
from tests.support.launch_driver import Job
from tests.support.tiny_launch import train_together
from tests.support.tiny_models import make_sd1
from tests.support.tiny_runs import DENOISER, write_config, write_squares

pytestmark = pytest.mark.slow  # its four runs take about twenty seconds

TRAINABLE = ("unet", "unet+text_encoder")
PERIODS = {"drawn": 2, "plain": 100}
"""Steps between previews: two in a run of four, and one after the last step."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four runs of two processes, such as `unet-drawn`."""
    folder = tmp_path_factory.mktemp("previews")
    save_parts(make_sd1(folder / "tokenizer"), folder / "base")
    data = write_squares(folder / "data")
    jobs: list[Job] = []
    for trainable in TRAINABLE:
        for name, every in PERIODS.items():
            run_dir = folder / f"{trainable}-{name}"
            changes: dict[str, Any] = {"trainable": trainable, "preview_every": every, "sharding": "full"}
            changes |= {"base": str(folder / "base"), "model": {}, "num_steps": 4}
            config = write_config(run_dir.with_suffix(".yaml"), DENOISER, data, run_dir, **changes)
            jobs.append({"do": "denoiser", "run_dir": str(run_dir), "config": str(config)})
    train_together(jobs)
    return folder


@pytest.mark.parametrize("trainable", TRAINABLE)
def test_previews_of_shards_are_drawn_and_change_nothing(folder: Path, trainable: str) -> None:
    drawn, plain = (folder / f"{trainable}-{name}" for name in PERIODS)
    pictures = [sorted(path.name for path in (run / "previews").iterdir()) for run in (drawn, plain)]
    assert pictures == [[f"step-{step:06d}.png" for step in (2, 4)], ["step-000004.png"]]
    rows = [json.loads(line) for line in (drawn / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3, 4]
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

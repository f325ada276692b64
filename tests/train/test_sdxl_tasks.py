"""Training a tiny SDXL for tasks with images, and a ControlNet for it; the results are used."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

from ldm.io.files import read_tensors
from ldm.models.loading.model import save_parts
from ldm.pipeline.pipeline import load_pipeline
from tests.support.tiny_images import box_mask, photo
from tests.support.tiny_models import make_sdxl
from tests.support.tiny_runs import COLORS, COMMON
from train import denoiser

CONTROLNET = {"trainable": "controlnet", "controlnet": {"kind": "scribble"}}
TASKS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "edit": ({}, {"image": photo(seed=1)}),
    "inpaint": ({}, {"image": photo(seed=1), "mask": box_mask((16, 16), (2, 2, 9, 9))}),
    "upscale": ({}, {"image": photo(8, 8, seed=1)}),
    "restore": ({}, {"image": photo(seed=1)}),
    "control": (CONTROLNET, {"control": {"scribble": photo(seed=1)}}),
}
"""The settings of each task, and what its result is given besides a prompt."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sdxl-tasks")
    save_parts(make_sdxl(folder / "tokenizers"), folder / "base")
    (folder / "data").mkdir()
    rows = []
    for number, color in enumerate(COLORS):
        Image.new("RGB", (20, 16), color).save(folder / f"data/{color}.png")
        photo(20, 16, seed=number).save(folder / f"data/{color}-source.png")
        rows.append({
            "file_name": f"{color}.png", "source_file_name": f"{color}-source.png",
            "control_file_name": f"{color}-source.png", "text": color,
        })  # fmt: skip
    (folder / "data/metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def run(folder: Path, task: str, name: str, **changes: Any) -> Path:
    tree = {
        **COMMON,
        "program": "denoiser",
        "task": task,
        "base": str(folder / "base"),
        "run_dir": str(folder / f"{task}-{name}"),
        "data": {"path": str(folder / "data"), "height": 16, "width": 16, "flip": True},
        "captions": {"dropout": 0.5},
        "cache": {"folder": str(folder / "cache")},
        "preview": {"num_inference_steps": 1},
        "num_steps": 2,
        "optim": {**COMMON["optim"], "lr_schedule": "constant", "num_warmup_steps": 0},
        **changes,
    }
    path = folder / f"{task}-{name}.yaml"
    path.write_text(yaml.safe_dump(tree))
    assert denoiser.main([str(path)]) == 0
    return folder / f"{task}-{name}"


def losses(run_dir: Path) -> list[float]:
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    return read_tensors(sorted((run_dir / "checkpoints").iterdir())[-1] / "weights.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_a_task_is_trained_resumed_and_used(folder: Path, task: str) -> None:
    settings, given = TASKS[task]
    whole = run(folder, task, "whole", **settings)
    run(folder, task, "resumed", num_steps=1, **settings)
    resumed = run(folder, task, "resumed", **settings)
    one, two = weights(whole), weights(resumed)
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    uncached = run(folder, task, "uncached", cache={"enabled": False}, **settings)
    assert losses(uncached) == pytest.approx(losses(whole), abs=1e-5)
    trained = load_pipeline(whole, device="cpu")
    assert trained.parts.task == ("text-to-image" if task == "control" else task)
    assert trained.parts.family.name == "sdxl"
    made = trained.generate("red", num_inference_steps=1, seed=1, **given)
    assert made.images[0].size == (16, 16)

"""The recipe for the tasks of shapes on a small scale: its configurations with few steps, scored."""

import json
from pathlib import Path

import pytest

from ldm.demos.shapes_drawing import write_shapes
from ldm.demos.shapes_edits import write_edits
from ldm.demos.shapes_hints import write_shapes_with_hints
from ldm.demos.shapes_quality_score import measure_task
from ldm.demos.shapes_tasks_score import score_task
from ldm.pipeline.pipeline import load_pipeline
from train import denoiser, text_encoder

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs" / "tasks"
SMALL = ["data.holdout_fraction=0", "global_batch_size=8", "optim.num_warmup_steps=1", "device=cpu"]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a few drawings, a few edits, and a text encoder trained on both."""
    folder = tmp_path_factory.mktemp("tasks")
    (folder / "data").mkdir()
    write_shapes(folder / "data/shapes-plain-32", num_images=16, size_px=32, plain=True)
    write_edits(folder / "data/shapes-edits-32", num_edits=16, size_px=32)
    write_shapes_with_hints(folder / "data/shapes-hints-32", num_images=16)
    (folder / "ldm").symlink_to(ROOT / "ldm")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert text_encoder.main([str(CONFIGS / "text_encoder.yaml"), *SMALL, "num_steps=2"]) == 0
    return folder


@pytest.mark.parametrize("task", ["edit", "inpaint"])
def test_the_configuration_trains_a_model_that_is_scored(
    task: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    few = ["num_steps=3", "preview.num_inference_steps=2"]
    assert denoiser.main([str(CONFIGS / f"{task}.yaml"), *SMALL, *few]) == 0
    report = score_task(
        load_pipeline(f"runs/tasks/{task}"),
        task,
        folder / task,
        num_cases=4,
        settings={"num_inference_steps": 2},
    )
    assert json.loads((folder / task / "report.json").read_text()) == report
    parts = {"held_out", "seen", "ceiling", "null"} | ({"unedited"} if task == "edit" else set())
    assert set(report["scores"]) == parts
    assert report["scores"]["held_out"]["all"]["all"]["num_judged"] == 4


@pytest.mark.parametrize("task", ["control", "restore", "upscale"])
def test_the_configuration_trains_a_model_that_is_measured(
    task: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    few = ["num_steps=3", "preview.num_inference_steps=2", "validation.every=0"]
    for name in ("text_to_image", task) if task == "control" else (task,):
        assert denoiser.main([str(CONFIGS / f"{name}.yaml"), *SMALL, *few]) == 0
    report = measure_task(
        load_pipeline(f"runs/tasks/{task}"),
        task,
        folder / task,
        num_cases=4,
        settings={"num_inference_steps": 2},
    )
    assert json.loads((folder / task / "report.json").read_text()) == report
    assert report["quality"]["held_out"]["all"] and report["gains"]

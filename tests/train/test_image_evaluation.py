"""Images measured during training: always the same ones, for any number of processes, and the run is left as it was."""

import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

from ldm.config import load_settings
from ldm.demos.shapes import parse_caption, training_scene
from ldm.demos.shapes_drawing import draw
from ldm.errors import UserError
from ldm.evaluation.paired import Scores
from ldm.models.loading.model import save_parts
from tests.support.tiny_images import photo
from tests.support.tiny_models import make_sd1
from tests.support.tiny_runs import COMMON, DENOISER
from tests.support.tiny_training import PointLoss, Points, make_settings, outcome
from train import denoiser
from train.data.denoiser_data import image_evaluation, read_training_data
from train.loop.averages import WeightAverages
from train.loop.processes import Processes
from train.loop.state import TrainState
from train.run import image_evaluation as module
from train.run.best import read_best
from train.run.image_evaluation import BATCH, ImageEvaluation
from train.run.run import Run
from train.settings.denoiser import DenoiserSettings

NUM_IMAGES = 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model and 30 photos of 16 px, of which about half are held out."""
    root = tmp_path_factory.mktemp("evaluated")
    save_parts(make_sd1(root / "tokenizer"), root / "base")
    (root / "data").mkdir()
    for number in range(30):
        photo(16, 16, seed=number).save(root / f"data/{number:02d}.png")
        (root / f"data/{number:02d}.txt").write_text(f"image {number}")
    return root


def config(folder: Path, name: str, **changes: Any) -> Path:
    program = {**DENOISER, "base": str(folder / "base"), "model": {}, "trainable": "unet"}
    validation = {"evaluate_every": 2, "num_images": NUM_IMAGES, **changes.pop("validation", {})}
    data = {"path": str(folder / "data"), "height": 16, "width": 16, "holdout_fraction": 0.5}
    tree = {**COMMON, **program, "run_dir": str(folder / name), "data": data, "num_steps": 4, "save_every": 1}
    tree |= {"cache": {"folder": str(folder / "cache")}, "validation": validation, "keep_checkpoints": 9}
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({**tree, **changes}))
    return path


@pytest.fixture(scope="module")
def run_dir(folder: Path) -> Path:
    assert denoiser.main([str(config(folder, "measured", validation={"keep_best": "kid"}))]) == 0
    return folder / "measured"


@pytest.fixture(scope="module")
def evaluation(folder: Path) -> ImageEvaluation:
    return evaluation_of(load_settings(DenoiserSettings, config(folder, "alone")))


def evaluation_of(settings: DenoiserSettings) -> ImageEvaluation:
    run = Run(settings, planning=True)
    loss, _ = denoiser.make_model(run, settings)
    return image_evaluation(run, settings, loss, read_training_data(run, settings, loss))


def measured(evaluation: ImageEvaluation) -> dict[str, float | Scores]:
    loss = evaluation.loss
    return evaluation(TrainState(loss, torch.optim.SGD(loss.parameters()), WeightAverages(loss, 0.5)))


def test_measuring_changes_no_weight_and_the_best_is_kept(folder: Path, run_dir: Path) -> None:
    """The loss, the weights, the average and the moments are those of a run that measures nothing, bit for bit."""
    plain = config(folder, "plain", validation={"evaluate_every": 0})
    assert denoiser.main([str(plain)]) == 0
    tensors, rows, _ = outcome(run_dir)
    other_tensors, other_rows, _ = outcome(folder / "plain")
    assert tensors.keys() == other_tensors.keys()
    assert all(torch.equal(tensors[name], other_tensors[name]) for name in tensors)
    assert [row for row in rows if "loss" in row] == other_rows
    found = [row for row in rows if "kid" in row]
    assert [row["step"] for row in found] == [2, 4]
    assert all(row["kid_low"] < row["kid"] < row["kid_high"] for row in found)
    assert "kid_since_best_low" not in found[0] and "kid_since_best_low" in found[1]
    best = json.loads(next((run_dir / "best").rglob("best.json")).read_text())
    assert best["kid"] == min(row["kid"] for row in found)


def test_a_resumed_run_measures_and_compares_as_an_undisturbed_one(folder: Path, run_dir: Path) -> None:
    """Resumed from step 3, whose checkpoint holds the scores of the best."""
    resumed = folder / "resumed"
    shutil.copytree(run_dir, resumed)
    shutil.rmtree(resumed / "checkpoints/step-000004")
    assert denoiser.main([str(config(folder, "resumed", validation={"keep_best": "kid"}))]) == 0
    tensors, *rest = outcome(run_dir)
    other_tensors, *other_rest = outcome(resumed)
    assert rest == other_rest and rest[1]["best_scores"].keys() == {"kid"}
    assert all(torch.equal(tensors[name], other_tensors[name]) for name in tensors)


def test_the_numbers_do_not_depend_on_the_number_of_processes(
    evaluation: ImageEvaluation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each process fills its rows, and the sum of all is what one process has."""
    alone = measured(evaluation)
    shares: list[torch.Tensor] = []
    monkeypatch.setattr(module, "summed", lambda rows, device, processes: shares.append(rows) or rows)
    rows = []
    with torch.no_grad():
        for num_processes in (1, 2, 3):
            shares.clear()
            for rank in range(num_processes):
                evaluation.run.processes = Processes(rank, num_processes)
                found = evaluation._gathered(NUM_IMAGES, evaluation._measured_batch)
            rows.append(torch.stack(shares).sum(dim=0) if shares else found)
    evaluation.run.processes = Processes()
    assert all(torch.equal(each, rows[0]) for each in rows) and len(rows[0]) == NUM_IMAGES > BATCH
    again = measured(evaluation)
    assert {k: v for k, v in again.items() if isinstance(v, float)} == {
        k: v for k, v in alone.items() if isinstance(v, float)
    }


def test_the_measurement_leaves_modes_and_random_state_alone(evaluation: ImageEvaluation) -> None:
    modes = [part.training for part in evaluation.loss.modules()]
    state = torch.get_rng_state()
    measured(evaluation)
    assert torch.equal(torch.get_rng_state(), state)
    assert [part.training for part in evaluation.loss.modules()] == modes


@pytest.mark.parametrize("task", ["inpaint", "upscale"])
def test_tasks_that_are_given_images_are_measured_as_well(folder: Path, task: str) -> None:
    """With what the held-out samples give; the numbers are the same each time, and each image has its own noise."""
    evaluation = evaluation_of(load_settings(DenoiserSettings, config(folder, task, task=task)))
    first, again = measured(evaluation), measured(evaluation)
    assert first["kid"] == again["kid"] and isinstance(first["kid"], float) and math.isfinite(first["kid"])
    with torch.no_grad():
        alone = [evaluation._generate(range(i, i + 1))[0].tobytes() for i in (0, 1)]
        both = [image.tobytes() for image in evaluation._generate(range(2))]
    assert alone == both and alone[0] != alone[1]


class OfGivenImages(ImageEvaluation):
    """Measures these images in place of generated ones."""

    images: list[Image.Image]

    def _generate(self, batch: range) -> list[Image.Image]:
        return self.images[batch.start : batch.stop]


def test_what_images_of_shapes_show_is_judged_by_the_caption(folder: Path, tmp_path: Path) -> None:
    """11 of 12 images are drawn as their captions say."""
    scenes = [training_scene(0, number, plain=True) for number in range(24)]
    for number, scene in enumerate(scenes):
        draw(scene, 64, number).save(tmp_path / f"{number:02d}.png")
        (tmp_path / f"{number:02d}.txt").write_text(scene.caption)
    data = {"path": str(tmp_path), "height": 64, "width": 64, "holdout_fraction": 0.5}
    settings = load_settings(
        DenoiserSettings, config(folder, "judged", data=data, validation={"keep_best": "judge"})
    )
    plain = evaluation_of(settings)
    found = OfGivenImages(plain.run, settings, plain.loss, plain.held_out, plain.size, plain.given)
    found.images = [draw(parse_caption(prompt), 64, prompt) for prompt in found.prompts]
    found.images[0] = Image.new("RGB", (64, 64), "white")
    row = measured(found)
    assert row["judge"] == pytest.approx(11 / 12) and row["num_images"] == 12
    scores = row["judge_scores"]
    assert isinstance(scores, Scores) and scores.per_image.tolist() == [0.0] + [1.0] * 11


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"validation": {"keep_best": "judge"}}, "not all captions are of drawn shapes"),
        ({"validation": {"features": "nowhere"}}, "no config.json"),
        ({"validation": {"clip": "nowhere"}}, "no config.json"),
        ({"data": {"holdout_fraction": 0.1}, "validation": {"keep_best": "kid"}}, "KID needs 10 or more"),
        ({"data": {"holdout_fraction": 0.1}}, "measures nothing"),
    ],
)
def test_what_cannot_be_measured_is_said_before_the_first_step(
    folder: Path, changes: dict[str, Any], message: str
) -> None:
    data = {"path": str(folder / "data"), "height": 16, "width": 16, "holdout_fraction": 0.5}
    path = config(folder, "refused", **{**changes, "data": {**data, **changes.get("data", {})}})
    with pytest.raises(UserError, match=message):
        evaluation_of(load_settings(DenoiserSettings, path))
    assert not (folder / "refused").exists()


@pytest.mark.parametrize(
    ("validation", "message"),
    [
        ({"keep_best": "kid"}, "set validation.evaluate_every"),
        ({"every": 2, "keep_best": "clip"}, "set validation.evaluate_every"),
        ({"evaluate_every": 2, "keep_best": "clip"}, "set validation.clip"),
        ({"evaluate_every": 2, "keep_best": True}, "set validation.every"),
        ({"evaluate_every": 2, "keep_best": "loss"}, "set validation.every"),
        ({"every": 2, "clip": "clip"}, "set validation.evaluate_every"),
        ({"every": 2, "keep_best": "fid"}, "validation.keep_best = 'fid'"),
    ],
)
def test_contradictions_are_refused(validation: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        make_settings(Path("run"), validation=validation)


def test_old_configurations_keep_their_meaning() -> None:
    for value, decider in (
        (True, "loss"),
        (False, "loss"),
        ("true", "loss"),
        ("loss", "loss"),
        ("kid", "kid"),
    ):
        found = make_settings(Path("run"), validation={"every": 1, "evaluate_every": 1, "keep_best": value})
        assert found.validation.decider == decider and bool(found.validation.keep_best) == (
            value is not False
        )


def test_a_run_stops_early_by_the_measurement_of_images(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two measurements in a row that are certainly no better, with a falling loss beside."""
    noise = torch.linspace(-1, 1, 20, dtype=torch.float64)
    kids = [0.5, 0.3, 0.31, 0.4, 0.4]  # the third may be better: its error says so

    def evaluate(state: TrainState) -> dict[str, float | Scores]:
        spread = 1.0 if state.step == 3 else 0.001
        return {
            "kid": kids[state.step - 1],
            "kid_scores": Scores.of_mean(kids[state.step - 1] + spread * noise),
        }

    settings = make_settings(
        tmp_path, validation={"every": 1, "evaluate_every": 1, "keep_best": "kid", "patience": 2}
    )
    state = Run(settings).train(
        PointLoss(),
        Points(),
        bucket_of=["all"] * 7,
        preview=lambda state, path: None,
        validate=lambda state: {"validation_loss": 9.0 - state.step},
        evaluate=evaluate,
    )
    assert state.step == 5
    assert read_best(tmp_path)[0] == 2
    assert "no better kid in 2 measurements: finished" in capsys.readouterr().err

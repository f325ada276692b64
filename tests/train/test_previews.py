"""Previews come after the checkpoint, stop when the run is asked to stop, and cost little by default."""

import signal
from pathlib import Path
from typing import Any

import pytest

from ldm.config import validate
from tests.support.tiny_training import PointLoss, Points, assert_same_run, make_settings, measure, train
from train.data.denoiser_data import num_previewed, preview_size
from train.loop.state import TrainState
from train.run.checkpoints import checkpoints
from train.run.run import Run
from train.run.signals import Interrupted
from train.settings.denoiser import DenoiserSettings


def saved_steps(run_dir: Path) -> list[str]:
    return [each.name for each in checkpoints(run_dir / "checkpoints")]


def test_a_preview_is_drawn_after_the_checkpoint_of_its_step(tmp_path: Path) -> None:
    run, seen = Run(make_settings(tmp_path, save_every=2, preview_every=2, keep_checkpoints=9)), []

    def preview(state: TrainState, path: Path) -> None:
        seen.append((state.step, saved_steps(tmp_path)[-1]))

    run.train(PointLoss(), Points(), bucket_of=["all"] * 7, preview=preview, validate=measure)
    assert seen == [(step, f"step-{step:06}") for step in (2, 4, 6, 8)]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_a_preview_and_its_step_is_saved(tmp_path: Path, number: signal.Signals) -> None:
    """No checkpoint is due at step 3, but it is written before the run stops, and nothing of the run changes."""
    settings = make_settings(tmp_path / "run", preview_every=3)
    run, drawn = Run(settings), []

    def preview(state: TrainState, path: Path) -> None:
        for done in range(20):
            if done == 5:
                signal.raise_signal(number)
            run.on_preview_step(done + 1, 20)
            drawn.append(done)

    with pytest.raises(Interrupted) as stopped:
        run.train(PointLoss(), Points(), bucket_of=["all"] * 7, preview=preview, validate=measure)
    assert stopped.value.exit_code == 128 + number and "step 3" in str(stopped.value)
    assert drawn == list(range(5)) and saved_steps(tmp_path / "run") == ["step-000003"]
    train(settings)
    train(make_settings(tmp_path / "undisturbed", preview_every=3))
    assert_same_run(tmp_path / "run", tmp_path / "undisturbed")


def denoiser_settings(**changes: Any) -> DenoiserSettings:
    tree = {
        "program": "denoiser",
        "run_dir": "run",
        "base": "emoji",
        "num_steps": 1500,
        "global_batch_size": 4,
    }
    data = {"path": "data", "height": 256, "width": 384}
    return validate(DenoiserSettings, {**tree, "optim": {"num_warmup_steps": 0}, "data": data, **changes})


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, 8),
        ({"num_steps": 500}, 8),
        ({"num_steps": 500, "preview_every": 100}, 3),
        ({"num_steps": 3}, 1),
        ({"num_steps": 500, "preview_every": 100, "preview": {"guidance_scale": 1}}, 6),
        ({"num_steps": 500, "preview_every": 100, "preview": {"height": 512, "width": 768}}, 1),
    ],
)
def test_by_default_previews_add_a_tenth_to_the_cost_of_a_run(changes: dict[str, Any], expected: int) -> None:
    assert num_previewed(denoiser_settings(**changes)) == expected


def test_previews_have_the_size_of_the_training_images() -> None:
    assert preview_size(denoiser_settings()) == (256, 384)
    assert preview_size(denoiser_settings(preview={"width": 512})) == (256, 512)

"""A run that ends by its validation loss, and keeps the best weights."""

from pathlib import Path

import pytest
import torch

from tests.tiny_training import Points, PointTask, make_settings, outcome
from train.best import read_best
from train.run import Run
from train.state import TrainState

LOSSES = [5.0, 3.0, 4.0, 4.0, 1.0, 1.0, 1.0, 1.0]
"""What is measured after step 1, 2, ...: the best so far at step 2, and again at step 5."""


def train(run_dir: Path, patience: int) -> TrainState:
    settings = make_settings(
        run_dir, save_every=1, validation={"every": 1, "patience": patience, "keep_best": True}
    )
    return Run(settings).train(
        PointTask(),
        Points(),
        bucket_of=["all"] * 7,
        preview=lambda state, path: None,
        validate=lambda state: {"validation_loss": LOSSES[state.step - 1]},
    )


def test_it_stops_when_the_loss_has_not_fallen_for_so_many_measurements(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tmp_path / "run", patience=2).step == 4
    assert "no better validation loss in 2 measurements" in capsys.readouterr().err
    assert outcome(tmp_path / "run")[2]["step"] == 4


def test_a_run_that_has_stopped_is_not_taken_further(tmp_path: Path) -> None:
    train(tmp_path / "run", patience=2)
    before = outcome(tmp_path / "run")
    assert train(tmp_path / "run", patience=2).step == 4
    after = outcome(tmp_path / "run")
    assert before[1:] == after[1:]
    assert all(torch.equal(before[0][name], after[0][name]) for name in before[0])


def test_with_patience_it_goes_on_to_the_end_and_the_best_weights_are_kept(tmp_path: Path) -> None:
    state = train(tmp_path / "run", patience=4)
    assert state.step == 8
    step, weights = read_best(tmp_path / "run")
    assert step == 5
    early = train(tmp_path / "early", patience=2)
    assert read_best(tmp_path / "early")[0] == 2
    state.average.replace_applied(weights)
    with state.average.applied():
        assert all(torch.equal(p, weights[name]) for name, p in state.average.live.items())
    assert not all(torch.equal(p, weights[name]) for name, p in early.average.live.items())

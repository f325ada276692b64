"""Early stopping by the validation loss, and keeping the best weights."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.tiny_training import PointLoss, Points, make_settings, outcome
from train.loop.state import TrainState
from train.run.best import read_best
from train.run.run import Run

LOSSES = [5.0, 3.0, 4.0, 4.0, 1.0, 1.0, 1.0, 1.0]
"""What is measured after step 1, 2, ...: the best so far at step 2, and again at step 5."""


def train(run_dir: Path, patience: int, losses: Sequence[float] = LOSSES) -> TrainState:
    settings = make_settings(
        run_dir, save_every=1, validation={"every": 1, "patience": patience, "keep_best": True}
    )
    return Run(settings).train(
        PointLoss(),
        Points(),
        bucket_of=["all"] * 7,
        preview=lambda state, path: None,
        validate=lambda state: {"validation_loss": losses[state.step - 1]},
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


# Killed and resumed: the results beside the checkpoints are those of the resumed run

FALLING = [9.0, 8.0, 3.0, 7.0, 2.0, 1.0, 5.0, 6.0]
"""The best are steps 1, 2, 3, 5 and 6: that of step 3 is replaced between two checkpoints."""
KEEPING: dict[str, Any] = {
    "save_every": 4,
    "keep_checkpoints": 1,
    "validation": {"every": 1, "keep_best": True},
    "optim": {"average": {"widths": [0.1, 0.2], "snapshot_every": 2}},
}


def run(run_dir: Path, losses: Sequence[float], dies_in: int | None = None, **changes: Any) -> TrainState:
    """A run whose measurements are `losses`, killed in step `dies_in`."""

    def die(number: int) -> None:
        if dies_in is not None and number + 1 == dies_in:
            raise KeyboardInterrupt

    return Run(make_settings(run_dir, **{**KEEPING, **changes})).train(
        PointLoss(on_forward=die),
        Points(),
        bucket_of=["all"] * 7,
        preview=lambda state, path: None,
        validate=lambda state: {"validation_loss": losses[state.step - 1]},
    )


def kept_beside(run_dir: Path) -> dict[str, bytes]:
    files = [path for name in ("best", "averages") for path in (run_dir / name).rglob("*.*")]
    return {str(path.relative_to(run_dir)): path.read_bytes() for path in files}


@pytest.mark.parametrize("step", range(1, 9))
def test_a_run_killed_in_any_step_keeps_the_best_of_an_undisturbed_one(tmp_path: Path, step: int) -> None:
    run(tmp_path / "whole", FALLING)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", FALLING, dies_in=step)
    run(tmp_path / "killed", FALLING)
    assert kept_beside(tmp_path / "killed") == kept_beside(tmp_path / "whole")
    assert read_best(tmp_path / "killed")[0] == 6
    assert len(list((tmp_path / "killed/best").iterdir())) == 1


def test_a_run_that_goes_on_otherwise_keeps_nothing_of_the_steps_left_behind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, FALLING, dies_in=8)
    assert read_best(tmp_path)[0] == 6
    capsys.readouterr()
    seldom = {"optim": {"average": {**KEEPING["optim"]["average"], "snapshot_every": 5}}}
    run(tmp_path, [0.0] * 4 + [4.0] * 4, validation={"every": 100, "keep_best": True}, **seldom)
    assert read_best(tmp_path)[0] == 3  # the better one of step 6 had replaced it
    assert sorted(path.name for path in (tmp_path / "averages").iterdir()) == [
        "step-000002", "step-000004", "step-000005", "step-000008",
    ]  # fmt: skip
    said = capsys.readouterr().err
    assert "averages: removed the results of steps after 4: step-000006" in said
    assert "best: removed the results of steps after 4: step-000006" in said


def test_what_a_killed_writer_left_beside_the_best_and_the_averages_goes(tmp_path: Path) -> None:
    run(tmp_path, FALLING)
    for name in ("best", "averages"):
        (tmp_path / name / ".tmp-step-000008-abcdef01").mkdir()
    run(tmp_path, FALLING)
    assert not list(tmp_path.glob("*/.tmp-*"))


def test_a_run_warns_when_the_held_out_loss_rises_and_shows_it_beside_the_loss(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tmp_path / "run", patience=0, losses=[5, 3, 1, 2, 2, 3, 4, 5])
    said = capsys.readouterr().err
    assert said.count("warning: the loss on the held-out images has risen") == 1
    assert "from 1.0000 at step 3 to 3.0000 at step 6" in said
    assert "step 8/8  loss " in said and "held out 4.0000 (best 1.0000 at step 3)" in said

"""The best step and early stopping are decided from the rows alone; the best weights are written atomically."""

import errno
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ldm.errors import UserError
from ldm.evaluation.paired import Scores
from train.loop.averages import WeightAverages
from train.run.best import (
    apply_best,
    best_passed,
    best_step,
    keep_best,
    overfitting,
    paired_change,
    progress_note,
    prune_best,
    read_best,
    should_stop,
)


def rows_of(*losses: float) -> list[dict[str, Any]]:
    """A measurement every 10 steps, with logged training steps in between."""
    rows: list[dict[str, Any]] = []
    for number, loss in enumerate(losses, 1):
        rows += [{"step": 10 * number - 5, "loss": 0.0}, {"step": 10 * number, "validation_loss": loss}]
    return rows


def test_the_lowest_is_the_best_and_the_first_of_equals() -> None:
    assert best_step(rows_of(3, 1, 2, 1)) == 20
    assert best_step([{"step": 5, "loss": 0.1}]) is None
    assert best_step(rows_of(math.nan, 2, math.nan)) == 20
    assert best_step(rows_of(math.nan, math.inf)) is None
    assert (
        best_step([*rows_of(1, 2), {"step": 10, "validation_loss": 3.0}]) == 20
    )  # the last row of a step counts


def test_patience_counts_the_measurements_since_the_best() -> None:
    losses = (3, 1, 2, 2, 2)
    assert [should_stop(rows_of(*losses[:n]), 3) for n in range(6)] == [False] * 5 + [True]
    assert not should_stop(rows_of(*losses), 4)
    assert not should_stop(rows_of(1, *[2] * 50), 0)
    assert should_stop(rows_of(math.nan, math.nan), 2)


def test_the_progress_line_shows_the_last_loss_and_the_best() -> None:
    assert progress_note([{"step": 5, "loss": 1.0}]) == ""
    assert progress_note(rows_of(3, 1)) == "held out 1.0000"
    assert progress_note(rows_of(3, 1, 2)) == "held out 2.0000 (best 1.0000 at step 20)"


def test_a_rising_loss_is_said_once_for_each_best_step() -> None:
    losses = (3, 1, 2, 2, 2, 2, 0.5, 0.4, 0.6, 0.6, 0.6)
    said = [overfitting(rows_of(*losses[:n]), keeps_best=False) for n in range(len(losses) + 1)]
    assert [n for n, text in enumerate(said) if text] == [5, 11]
    assert "from 1.0000 at step 20 to 2.0000 at step 50" in said[5] and "set validation.keep_best" in said[5]
    assert "the weights of the best step" in overfitting(rows_of(*losses[:5]), keeps_best=True)


def test_a_run_that_ends_past_its_best_step_says_so() -> None:
    assert best_passed(rows_of(3, 2, 1)) == best_passed([{"step": 5, "loss": 1.0}]) == ""
    assert "lowest at step 20 (1.0000), and at the end it is 2.0000" in best_passed(rows_of(3, 1, 2))


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.data(), st.lists(st.floats(0, 10) | st.just(math.nan), max_size=12), st.integers(0, 4))
def test_rows_that_a_resumed_run_logs_again_change_nothing(
    data: st.DataObject, losses: list[float], patience: int
) -> None:
    rows = rows_of(*losses)
    begin = data.draw(st.integers(0, len(rows)))
    again = rows[: data.draw(st.integers(begin, len(rows)))] + rows[begin:]
    assert (best_step(again), should_stop(again, patience)) == (best_step(rows), should_stop(rows, patience))


def test_the_best_is_replaced_only_by_a_better_one(tmp_path: Path) -> None:
    losses, kept = [3.0, 1.0, 2.0, 0.5], []
    for number in range(1, 5):
        weights = {"w": torch.full((2, 3), float(number))}
        kept.append(keep_best(tmp_path, weights, 10 * number, rows_of(*losses[:number])))
        step, tensors = read_best(tmp_path)
        expected = {1: 10, 2: 20, 3: 20, 4: 40}[number]
        assert step == expected
        assert torch.equal(tensors["w"], torch.full((2, 3), expected / 10))
    assert kept == [True, True, False, True]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["best"]
    assert [p.name for p in (tmp_path / "best").iterdir()] == ["step-000040"]
    assert sorted(p.name for p in (tmp_path / "best/step-000040").iterdir()) == [
        "average.safetensors", "best.json", "manifest.json",
    ]  # fmt: skip


def test_the_best_at_each_checkpoint_stays_until_the_checkpoint_goes(tmp_path: Path) -> None:
    for step in (25, 45):
        (tmp_path / f"checkpoints/step-{step:06d}").mkdir(parents=True)
    for number in range(1, 7):
        keep_best(tmp_path, {"w": torch.zeros(2)}, 10 * number, rows_of(*range(9, 9 - number, -1)))
    assert sorted(p.name for p in (tmp_path / "best").iterdir()) == [
        "step-000020", "step-000040", "step-000060",
    ]  # fmt: skip
    (tmp_path / "checkpoints/step-000025").rmdir()
    prune_best(tmp_path)
    assert sorted(p.name for p in (tmp_path / "best").iterdir()) == ["step-000040", "step-000060"]


def test_without_a_finite_loss_the_average_is_taken_with_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    averages = WeightAverages(nn.Linear(2, 1), 0.5)
    before = {name: tensor.clone() for name, tensor in averages.tensors().items()}
    (tmp_path / "metrics.jsonl").write_text('{"step": 3, "validation_loss": NaN}\n')
    apply_best(tmp_path, averages)
    assert "warning: no validation loss was finite" in capsys.readouterr().err
    assert all(torch.equal(tensor, before[name]) for name, tensor in averages.tensors().items())
    (tmp_path / "metrics.jsonl").write_text('{"step": 3, "validation_loss": 1.0}\n')
    with pytest.raises(UserError, match="no best weights"):
        apply_best(tmp_path, averages)
    keep_best(tmp_path, {name: tensor + 1 for name, tensor in before.items()}, 10, rows_of(1))
    apply_best(tmp_path, averages)
    assert "the best step was 10" in capsys.readouterr().out
    assert all(torch.equal(tensor, before[name] + 1) for name, tensor in averages.tensors().items())


def test_a_damaged_best_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no best weights: .*manifest\.json is missing"):
        read_best(tmp_path)
    keep_best(tmp_path, {"w": torch.zeros(2)}, 10, rows_of(1))
    file = tmp_path / "best/step-000010/average.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"average\.safetensors has changed"):
        read_best(tmp_path)


def test_a_full_disk_leaves_the_former_best(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep_best(tmp_path, {"w": torch.zeros(2)}, 10, rows_of(2))

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr("os.fsync", full)  # the weights have been written by then, the rest has not
    with pytest.raises(UserError, match="the disk is full"):
        keep_best(tmp_path, {"w": torch.ones(2)}, 20, rows_of(2, 1))
    step, tensors = read_best(tmp_path)
    assert (step, tensors["w"].tolist()) == (10, [0, 0])


# Intervals, and other measurements than the loss


def measured(key: str, *values: float, spread: float, better: int = 1) -> list[dict[str, Any]]:
    """Rows with the interval of how far each value lies from the best before it."""
    rows: list[dict[str, Any]] = []
    for number, value in enumerate(values, 1):
        row: dict[str, Any] = {"step": 10 * number, key: value}
        if rows:
            best = better * min(better * row[key] for row in rows)
            change = value - best
            row |= {f"{key}_since_best_low": change - spread, f"{key}_since_best_high": change + spread}
        rows.append(row)
    return rows


def test_only_measurements_that_are_certainly_no_better_count_towards_stopping() -> None:
    """The best may be lucky: two later ones that its error explains do not stop the run, two that it does not do."""
    losses = (3, 1, 1.05, 1.05, 1.3, 1.05, 1.3, 1.3)
    stops = [should_stop(measured("validation_loss", *losses[:n], spread=0.1), 2) for n in range(9)]
    assert stops == [False] * 8 + [True]
    assert should_stop(
        measured("validation_loss", *losses[:4], spread=0.0), 2
    )  # without any error, the value decides


def test_the_best_by_a_measurement_of_which_more_is_better() -> None:
    scores = (0.2, 0.6, 0.5, 0.5)
    rows = measured("clip_score", *scores, spread=0.05, better=-1)
    assert best_step(rows, "clip") == 20 and best_step(rows) is None
    assert should_stop(rows, 2, "clip") and not should_stop(rows, 2, "judge")
    assert not should_stop(measured("clip_score", *scores, spread=0.2, better=-1), 2, "clip")
    assert progress_note(rows) == "clip 0.5000 (best 0.6000 at step 20)"
    with_limits = [{"step": 10, "kid": 0.5, "kid_low": 0.25, "kid_high": 0.75, "validation_loss": 1.0}]
    assert progress_note(with_limits) == "held out 1.0000  kid 0.5000 [0.2500, 0.7500]"


def test_the_best_by_kid_is_kept_whatever_the_loss(tmp_path: Path) -> None:
    rows = [
        {"step": 10, "kid": 0.2, "validation_loss": 9.0},
        {"step": 20, "kid": 0.3, "validation_loss": 1.0},
    ]
    assert keep_best(tmp_path, {"w": torch.zeros(2)}, 10, rows[:1], "kid")
    assert not keep_best(tmp_path, {"w": torch.ones(2)}, 20, rows, "kid")
    assert read_best(tmp_path)[0] == 10
    assert json.loads((tmp_path / "best/step-000010/best.json").read_text()) == {"step": 10, "kid": 0.2}


def test_how_far_a_measurement_lies_from_the_best_is_paired() -> None:
    noise = torch.randn(40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    best, now = Scores.of_mean(5 * noise), Scores.of_mean(5 * noise + 0.1 + 0.01 * noise.flip(0))
    found = paired_change(now, best, "loss")
    assert found["validation_loss_since_best_low"] > 0.09  # although each alone has a standard error of 0.8
    assert set(paired_change(now, best, "clip")) == {
        "clip_score_since_best", "clip_score_since_best_low", "clip_score_since_best_high",
    }  # fmt: skip
    assert paired_change(now, None, "kid") == {}
    assert paired_change(Scores.of_mean(noise[:5]), Scores.of_mean(noise[5:10]), "kid") == {}  # too few

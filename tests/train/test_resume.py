"""Resuming a run: exact to the last bit, with other settings where harmless, or from the weights alone."""

from pathlib import Path
from typing import Any

import pytest
import torch

from ldm.cli.train import fork_overrides
from ldm.config import load_settings, to_yaml
from ldm.errors import UserError
from ldm.io.files import read_tensors
from tests.support.tiny_training import (
    PointLoss,
    assert_same_run,
    make_settings,
    outcome,
    train,
    train_with_stops,
)
from train.settings.shared import TrainSettings


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run of eight steps, each of two micro-batches; an epoch has two steps."""
    run_dir = tmp_path_factory.mktemp("whole")
    train(make_settings(run_dir, max_micro_batch=2))
    return run_dir


@pytest.mark.parametrize(
    "stops",
    [[0], [3], [4], [5], [1, 4], [2, 2, 2]],
    ids=["mid-epoch", "at an epoch's end", "in epoch 2", "mid-accumulation", "twice", "three times"],
)
def test_n_steps_then_m_are_n_plus_m_to_the_last_bit(tmp_path: Path, whole: Path, stops: list[int]) -> None:
    train_with_stops(make_settings(tmp_path, max_micro_batch=2), stops)
    assert_same_run(tmp_path, whole)


def test_a_crash_in_the_middle_of_accumulation_loses_nothing(tmp_path: Path, whole: Path) -> None:
    def crash(number: int) -> None:
        if number == 11:  # the second micro-batch of step 6; steps 5 and 6 are repeated
            raise RuntimeError("the lights went out")

    settings = make_settings(tmp_path, max_micro_batch=2, save_every=4)
    with pytest.raises(RuntimeError):
        train(settings, PointLoss(on_forward=crash))
    assert [row["step"] for row in _rows(tmp_path)] == [
        1,
        2,
        3,
        3,
        4,
        5,
    ]  # step 3 also has a validation row
    train(settings)
    assert_same_run(tmp_path, whole)


def _rows(run_dir: Path) -> list[dict[str, float]]:
    return outcome(run_dir)[1]


def test_a_longer_run_goes_on_where_the_shorter_ended(tmp_path: Path) -> None:
    constant = {"lr_schedule": "constant"}
    for name, lengths in (("once", [6]), ("twice", [3, 6])):
        for num_steps in lengths:
            train(make_settings(tmp_path / name, num_steps=num_steps, optim=constant))
    assert_same_run(tmp_path / "once", tmp_path / "twice")


def test_a_run_that_stops_keeps_the_snapshots_of_an_unbroken_one(tmp_path: Path) -> None:
    optim = {"average": {"widths": [0.05, 0.1], "snapshot_every": 3}}
    for name, stops in (("once", []), ("twice", [2, 4])):
        train_with_stops(make_settings(tmp_path / name, optim=optim), stops)
    once, twice = (
        sorted((tmp_path / name / "averages").rglob("*.safetensors")) for name in ("once", "twice")
    )
    assert [path.parent.name for path in once] == ["step-000003", "step-000006", "step-000008"]
    assert [path.read_bytes() for path in once] == [path.read_bytes() for path in twice]


def test_other_micro_batches_give_the_same_run_but_for_rounding(tmp_path: Path) -> None:
    slowly: dict[str, Any] = {"optim": {"num_warmup_steps": 2}}
    one = train(make_settings(tmp_path / "one", **slowly), PointLoss(dropout=0))
    stopped = PointLoss(dropout=0, on_forward=lambda number: _stop(number == 3))
    with pytest.raises(RuntimeError):
        train(make_settings(tmp_path / "two", save_every=1, **slowly), stopped)
    again = make_settings(tmp_path / "two", save_every=1, max_micro_batch=1, **slowly)
    two = train(again, PointLoss(dropout=0))
    start, a, b = (_flat(module) for module in (PointLoss(), one.module, two.module))
    assert 0 < (a - b).norm() <= 1e-3 * (a - start).norm()


def _stop(now: bool) -> None:
    if now:
        raise RuntimeError


def _flat(module: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()])


# What may change


def test_harmless_changes_are_told_and_the_run_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(make_settings(tmp_path, num_steps=2))
    changed = {"num_steps": 3, "log_every": 2, "keep_checkpoints": 5, "validation": {"every": 1}}
    assert train(make_settings(tmp_path, **changed)).step == 3
    said = capsys.readouterr().err
    assert "num_steps was 2, now 3; the learning-rate schedule changes from here on" in said
    for line in ("log_every was 1, now 2", "keep_checkpoints was 2, now 5", "validation.every was 3, now 1"):
        assert line in said
    assert train(make_settings(tmp_path, **changed)).step == 3
    assert " was " not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"optim": {"learning_rate": 0.5}}, "optim.learning_rate was 0.01, now 0.5"),
        ({"global_batch_size": 2, "seed": 3}, "global_batch_size was 4, now 2, seed was 0, now 3"),
        ({"data": {"path": "others", "holdout_fraction": 0.1}}, "data.path was 'points', now 'others'"),
    ],
)
def test_a_change_of_what_is_computed_is_refused_with_the_mend(
    tmp_path: Path, changes: dict[str, object], said: str
) -> None:
    train(make_settings(tmp_path, num_steps=1))
    before = (tmp_path / "config.yaml").read_bytes()
    with pytest.raises(UserError, match="--fork NEW_DIR") as caught:
        train(make_settings(tmp_path, num_steps=1, **changes))
    assert said in str(caught.value) and "num_steps" not in str(caught.value)
    assert (tmp_path / "config.yaml").read_bytes() == before


def test_a_run_past_its_last_step_is_refused(tmp_path: Path) -> None:
    train(make_settings(tmp_path, num_steps=3))
    with pytest.raises(UserError, match=r"num_steps = 2, but .* is at step 3"):
        train(make_settings(tmp_path, num_steps=2))


def test_a_setting_that_came_into_being_since_does_not_keep_a_run_from_going_on(tmp_path: Path) -> None:
    train(make_settings(tmp_path, num_steps=1))
    path = tmp_path / "config.yaml"
    path.write_text("".join(line for line in path.read_text().splitlines(True) if "beta2" not in line))
    assert train(make_settings(tmp_path, num_steps=1)).step == 1
    path.write_text(path.read_text() + "gone: 3\n")
    with pytest.raises(UserError, match="gone was 3, now None"):
        train(make_settings(tmp_path, num_steps=1))


def test_without_a_checkpoint_any_setting_may_change(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError):
        train(make_settings(tmp_path), PointLoss(on_forward=lambda number: _stop(number == 1)))
    assert train(make_settings(tmp_path, num_steps=1, seed=3)).step == 1


# Forks


def test_a_fork_starts_from_the_weights_alone(tmp_path: Path, whole: Path) -> None:
    end = read_tensors(whole / "checkpoints/step-000008/weights.safetensors")
    fork = make_settings(
        tmp_path / "fork", fork_from=str(whole), num_steps=1, optim={"learning_rate": 1e-12, "ema_decay": 0.9}
    )
    state = train(fork)
    assert state.step == 1
    assert all(torch.allclose(p, end[name], atol=1e-9) for name, p in state.module.named_parameters())
    assert all(
        torch.allclose(average, end[name], atol=1e-9) for name, average in state.average.tensors().items()
    )
    assert {float(slots["step"]) for slots in state.optimizer.state.values()} == {1.0}
    start = dict(PointLoss().named_parameters())
    assert not any(torch.equal(start[name], end[name]) for name in end)


def test_a_fork_goes_on_with_itself(tmp_path: Path, whole: Path) -> None:
    for name, stops in (("once", []), ("twice", [3])):
        train_with_stops(
            make_settings(tmp_path / name, fork_from=str(whole / "checkpoints/step-000008")), stops
        )
    assert_same_run(tmp_path / "once", tmp_path / "twice")
    assert train(make_settings(tmp_path / "twice")).step == 8  # the same run without its source


def test_a_fork_from_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no checkpoint"):
        train(make_settings(tmp_path / "new", fork_from=str(tmp_path / "none")))
    with pytest.raises(UserError, match="is the run itself"):
        train(make_settings(tmp_path / "new", fork_from=str(tmp_path / "new")))
    train(make_settings(tmp_path / "old", num_steps=1))
    checkpoint = tmp_path / "old/checkpoints/step-000001"
    (checkpoint / "weights.safetensors").unlink()
    with pytest.raises(UserError, match=r"weights\.safetensors is missing"):
        train(make_settings(tmp_path / "new", fork_from=str(checkpoint)))


def test_the_command_line_names_both_runs(tmp_path: Path) -> None:
    config, new = tmp_path / "c.yaml", tmp_path / "a new: one"
    config.write_text(to_yaml(make_settings(tmp_path / "old: #1")))
    settings = load_settings(TrainSettings, config, fork_overrides(config, ["seed=3"], new))
    assert (settings.run_dir, settings.fork_from) == (new, tmp_path / "old: #1")
    given = ["run_dir=other"]
    settings = load_settings(TrainSettings, config, [*given, *fork_overrides(config, given, new)])
    assert (settings.run_dir, settings.fork_from) == (new, Path("other"))
    config.write_text("program: denoiser\n")
    with pytest.raises(UserError, match="has no `run_dir:`"):
        fork_overrides(config, [], new)

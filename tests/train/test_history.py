"""What a run has lost besides its checkpoints is said before it goes on, with what that makes impossible."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.tiny_training import make_settings, train
from train.run.checkpoints import checkpoints
from train.run.history import folder_faults, history_until
from train.run.log import TrainLog, read_metrics

OPTIM = {
    "lr_schedule": "constant",
    "average": {"widths": [0.05, 0.1], "snapshot_every": 2},
}
CHANGES: dict[str, Any] = {"optim": OPTIM, "validation": {"every": 3, "keep_best": True}}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of six steps with snapshots at 2, 4 and 6, and validation at 3 and 6."""
    folder = tmp_path_factory.mktemp("history")
    train(make_settings(folder, num_steps=6, **CHANGES))
    return folder


def resume(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    train(make_settings(run_dir, num_steps=7, **CHANGES))
    return capsys.readouterr().err.replace(f"{run_dir}/", "")


def metrics(edit: Callable[[list[str]], list[str]]) -> Callable[[Path], None]:
    """Edit the lines of metrics.jsonl."""

    def change(run_dir: Path) -> None:
        path = run_dir / "metrics.jsonl"
        path.write_text("".join(edit(path.read_text().splitlines(keepends=True))))

    return change


def of(path: str, edit: Callable[[Path], Any]) -> Callable[[Path], None]:
    return lambda run_dir: edit(run_dir / path)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


def forget_snapshots(run_dir: Path) -> None:
    shutil.rmtree(run_dir / "averages")


LOST: dict[str, tuple[Callable[[Path], None], str]] = {
    "all rows": (
        of("metrics.jsonl", Path.unlink),
        "metrics.jsonl lacks 8 of 8 rows up to step 6: `ldm plot` cannot show them, and the best step and early "
        "stopping are decided without them",
    ),
    "the second half": (metrics(lambda lines: lines[:4]), "metrics.jsonl lacks 4 of 8 rows up to step 6"),
    "a row in the middle": (
        metrics(lambda lines: lines[:1] + lines[2:]),
        "metrics.jsonl lacks 1 of 8 rows up to step 6: `ldm plot` cannot show them\n",
    ),
    "the end of a line": (
        metrics(lambda lines: [*lines[:-1], lines[-1][:9]]),
        "metrics.jsonl lacks 1 of 8 rows",
    ),
    "a changed number": (
        metrics(lambda lines: [lines[0].replace('"step": 1, "loss": ', '"step": 1, "loss": 1'), *lines[1:]]),
        "metrics.jsonl lacks rows as they were logged; some have changed",
    ),
    "a snapshot": (
        of("averages/step-000004", shutil.rmtree),
        "averages/step-000004 is missing: `ldm ema` does without it",
    ),
    "a bit of a snapshot": (
        of("averages/step-000004/averages.safetensors", flip),
        "averages/step-000004/averages.safetensors has changed since it was written: `ldm ema` does without it",
    ),
    "all snapshots": (
        forget_snapshots,
        "averages/step-000002 is missing: `ldm ema` has no snapshot of these steps",
    ),
    "the best weights": (of("best", shutil.rmtree), "best is missing: the best weights so far are lost"),
}


@pytest.mark.parametrize("name", LOST)
def test_what_is_lost_is_said_before_the_run_goes_on(
    tmp_path: Path, finished: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    lose, said = LOST[name]
    lose(tmp_path)
    output = resume(tmp_path, capsys)
    assert said in output
    assert output.index(said) < output.index("step 7/7")


def test_a_whole_history_is_not_mentioned(
    tmp_path: Path, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    said = resume(tmp_path, capsys)
    assert not any(word in said for word in ("lacks", "missing", "lost", "has changed"))
    assert resume(tmp_path, capsys).count("\n") == 1  # finished


def test_a_checkpoint_of_an_older_version_says_nothing_about_its_history(
    tmp_path: Path, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    for checkpoint in checkpoints(tmp_path / "checkpoints"):
        _forget_history(checkpoint)
    (tmp_path / "metrics.jsonl").unlink()
    assert "metrics.jsonl lacks all rows up to step 6" in resume(tmp_path, capsys)


def _forget_history(checkpoint: Path) -> None:
    from ldm.io.files import MANIFEST, write_json, write_manifest

    path = checkpoint / "state.json"
    numbers = json.loads(path.read_text())
    write_json(path, {key: numbers[key] for key in ("step", "num_bad_steps", "window")})
    (checkpoint / MANIFEST).unlink()
    write_manifest(checkpoint)


def test_large_snapshots_are_compared_by_size(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("train.run.history.MAX_HASHED_BYTES", 10)
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    file = tmp_path / "averages/step-000002/averages.safetensors"
    assert folder_faults([file.parent]) == []
    file.write_bytes(file.read_bytes()[:-1])
    assert folder_faults([file.parent]) == [f"{file} has changed since it was written"]


def test_the_history_of_an_interrupted_run_is_that_of_an_unbroken_one(tmp_path: Path, finished: Path) -> None:
    for num_steps in (2, 4, 6):
        train(make_settings(tmp_path, num_steps=num_steps, **{**CHANGES, "validation": {}}))
    assert history_until(tmp_path, 6).snapshots == history_until(finished, 6).snapshots == (2, 4, 6)


# Time


def test_the_time_of_earlier_calls_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("train.run.log.time.monotonic", lambda: now[0])

    def log(start_step: int, elapsed_sec: float) -> TrainLog:
        return TrainLog(tmp_path, start_step=start_step, num_steps=9, main=True, elapsed_sec=elapsed_sec)

    with log(0, 0.0) as first:
        now[0] += 30
        first.append({"step": 1})
        now[0] += 5
        saved_sec = first.elapsed_sec
        now[0] += 7
        first.append({"step": 2})  # repeated after the kill
    now[0] += 1000
    with log(1, saved_sec) as second:
        now[0] += 10
        second.append({"step": 2})
    with log(2, 0.0) as third:  # a checkpoint of an older version
        now[0] += 1
        third.append({"step": 3})
    rows = read_metrics(tmp_path)
    assert [(row["step"], row["elapsed_sec"], row["call_sec"]) for row in rows] == [
        (1, 30.0, 30.0),
        (2, 45.0, 10.0),
        (3, 46.0, 1.0),
    ]


def test_a_resumed_run_keeps_its_time(tmp_path: Path) -> None:
    train(make_settings(tmp_path, num_steps=3, optim={"lr_schedule": "constant"}))
    (checkpoint,) = checkpoints(tmp_path / "checkpoints")
    saved = json.loads((checkpoint / "state.json").read_text())["elapsed_sec"]
    train(make_settings(tmp_path, num_steps=6, optim={"lr_schedule": "constant"}))
    rows = read_metrics(tmp_path)
    assert rows[-1]["elapsed_sec"] >= saved and rows[-1]["elapsed_sec"] >= rows[-1]["call_sec"]
    times = [row["elapsed_sec"] for row in rows]
    assert times == sorted(times)

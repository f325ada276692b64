"""Trackers receive every logged number, and nothing private."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import PartialState

from ldm.errors import UserError
from ldm.io.redaction import own_names, redacted
from train.loop.steps import StepRecord
from train.run.history import CLOCKS
from train.run.log import TrainLog, read_metrics
from train.run.trackers import TrackerName, check_trackers, open_trackers

TOKEN = "hf_" + "aB3" * 11
SETTINGS: dict[str, Any] = {
    "program": "denoiser",
    "run_dir": Path("runs/secret-project"),
    "data": {
        "path": "photos",
        "sources": [{"path": "/data/alice/cats"}],
        "height": 64,
        "note": "from ~/private",
    },
    "base": "alice/private-model",
    "parts": {"text_encoder": "runs/clip"},
    "preview": {"prompts": ["a red apple and/or a pear", f"leaked {TOKEN}", "see /home/alice/x.png, please"]},
    "hub": {"token": "short", "url": "https://bob:pass@example.org/x y"},
    "optim": {"learning_rate": 0.1, "max_grad_norm": None, "fused": True},
    "home": "/home/al ice/with a space",
    "windows": "C:\\Users\\alice\\data set",
    "revision": "0123456789abcdef0123456789abcdef01234567",
    "machine": "trained on Tower-7 by alice, not malice",
}


def test_nothing_private_is_left() -> None:
    found = redacted(SETTINGS, names=("alice", "tower-7"))
    assert found == {
        "program": "denoiser",
        "run_dir": "<path>",
        "data": {"path": "<path>", "sources": [{"path": "<path>"}], "height": 64, "note": "from <path>"},
        "base": "<path>",
        "parts": {"text_encoder": "<path>"},
        "preview": {
            "prompts": ["a red apple and/or a pear", "leaked <secret>", "see <path>, please"],
        },
        "hub": {"token": "<secret>", "url": "<secret> y"},
        "optim": {"learning_rate": 0.1, "max_grad_norm": None, "fused": True},
        "home": "<path>",
        "windows": "<path>",
        "revision": "<secret>",
        "machine": "trained on <name> by <name>, not malice",
    }


def test_what_the_environment_calls_a_token_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_SERVICE_TOKEN", "correct horse battery")
    assert redacted({"note": "it is correct horse battery!"}, names=()) == {"note": "it is <secret>!"}


def test_the_names_of_this_machine_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "tower-7.example.org")
    monkeypatch.setenv("LOGNAME", "quokka")
    monkeypatch.setenv("HOME", "/home/root")
    assert own_names() == ["tower-7.example.org", "tower-7", "quokka"]  # but not `root`
    assert redacted({"note": "quokka@tower-7.example.org"}) == {"note": "<e-mail>"}


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_an_absent_package_is_named_with_its_mend(name: TrackerName, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.path", [])
    monkeypatch.delitem(sys.modules, name, raising=False)
    sys.path_importer_cache.clear()
    with pytest.raises(UserError) as caught:
        check_trackers([name])
    assert str(caught.value) == f"trackers: {name} is not installed: pip install {name}"


class Listener:
    """A tracker that stores what it receives."""

    def __init__(self) -> None:
        self.told: list[tuple[int, dict[str, float]]] = []
        self.closed = False

    def log(self, values: dict[str, float], step: int) -> None:
        self.told.append((step, dict(values)))

    def close(self) -> None:
        self.closed = True


def record(step: int, **metrics: float) -> StepRecord:
    return StepRecord(step, 0.5, {n: torch.tensor(v) for n, v in metrics.items()}, torch.tensor(2.0))


def test_the_log_feeds_the_trackers_what_it_writes(tmp_path: Path) -> None:
    listener = Listener()
    with TrainLog(tmp_path, start_step=0, num_steps=9, main=True, trackers=[listener]) as log:
        log.record(record(1, loss=0.25, loss_t0=0.125, loss_t9=float("nan")))
        log.append({"step": 1, "validation_loss": 0.5, "samples": ["alice"], "skipped": True})
        assert not listener.closed
    assert listener.closed
    rows = read_metrics(tmp_path)
    assert [{k: v for k, v in row.items() if k not in CLOCKS} for row in rows] == [
        {"step": 1, "loss": 0.25, "loss_t0": 0.125, "learning_rate": 0.5, "grad_norm": 2.0},
        {"step": 1, "validation_loss": 0.5, "samples": ["alice"], "skipped": True},
    ]
    assert listener.told == [
        (1, {"loss": 0.25, "loss_t0": 0.125, "learning_rate": 0.5, "grad_norm": 2.0}),
        (1, {"validation_loss": 0.5}),
    ]


def test_other_ranks_are_silent(tmp_path: Path) -> None:
    with TrainLog(tmp_path, start_step=0, num_steps=9, main=False) as log:
        log.record(record(1, loss=0.25))
    assert read_metrics(tmp_path) == []


def test_a_resumed_run_forgets_the_steps_it_does_again(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    rows = [json.dumps({"step": step, "loss": step / 3}) for step in (1, 2, 3)]
    file.write_text("\n".join(rows) + '\n{"step": 4, "lo')  # killed while writing
    with TrainLog(tmp_path, start_step=2, num_steps=9, main=True) as log:
        log.append({"step": 3, "loss": 7.0})
    assert file.read_text().startswith("\n".join(rows[:2]) + '\n{"step": 3, "loss": 7.0')
    file.write_text("no row\n" + rows[0] + "\n")
    with pytest.raises(UserError, match="line 1 is not a logged step"):
        read_metrics(tmp_path)


def bytes_of(folder: Path) -> bytes:
    """Every name and every byte in a folder, except wandb's own logs, which are not sent."""
    paths = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("debug")]
    return b"".join(str(path.relative_to(folder)).encode() + path.read_bytes() for path in paths)


def follow_a_run(name: TrackerName, run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """Log steps 1 to 3, resume after step 2 with other losses; returns what was written."""
    monkeypatch.setattr("socket.gethostname", lambda: "tower-7")
    monkeypatch.setenv("LOGNAME", "quokka")
    run_dir.mkdir()
    settings = {**SETTINGS, "note": f"quokka at tower-7 with {TOKEN}", "place": str(run_dir)}
    for start, loss in ((0, 0.5), (2, 0.25)):
        trackers = open_trackers([name], run_dir, settings, start_step=start)
        for step in range(start + 1, 4):
            trackers[0].log({"loss": loss, "learning_rate": 0.125}, step)
        trackers[0].close()
    return bytes_of(run_dir / name)


def test_tensorboard_reads_back_what_was_logged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    written = follow_a_run("tensorboard", tmp_path / "run", monkeypatch)
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(1, 0.5), (2, 0.5), (3, 0.25)]
    assert [e.value for e in events.Scalars("learning_rate")] == [0.125] * 3
    text = events.Tensors("settings/text_summary")[-1].tensor_proto.string_val[0].decode()
    assert json.loads(text)["optim"]["learning_rate"] == 0.1
    for private in (TOKEN, str(tmp_path), "quokka", "tower-7", "photos"):
        assert private.encode() not in written


def test_wandb_is_told_nothing_of_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    PartialState()  # Accelerate's trackers need it to know the main process
    written = follow_a_run("wandb", tmp_path / "run", monkeypatch)
    assert b"learning_rate" in written
    for private in (TOKEN, str(tmp_path), "quokka", "tower-7", "photos"):
        assert private.encode() not in written

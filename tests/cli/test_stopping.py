"""A signal in any phase of a command ends it in one line, and leaves nothing half-written."""

import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from ldm.cli.app import app
from ldm.models.loading import source as model_source
from tests.support.tiny_generate import save_model
from tests.support.tiny_runs import AUTOENCODER, write_config, write_squares
from train import autoencoder

NUM_MOMENTS = 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model and seven images."""
    folder = tmp_path_factory.mktemp("stopping")
    save_model(folder)
    write_squares(folder / "data")
    return folder


@pytest.fixture(autouse=True)
def no_other_handler() -> Iterator[None]:
    """A signal that no command handles fails the test, instead of ending the tests."""

    def fail(number: int, frame: FrameType | None) -> None:
        raise AssertionError("a signal was not handled")

    former = signal.signal(signal.SIGTERM, fail)
    yield
    signal.signal(signal.SIGTERM, former)


@pytest.fixture(autouse=True)
def place(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(model_source.EMBEDDED, "emoji", folder / "one")
    monkeypatch.setenv("LDM_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)


def at_call(number: int, work: Callable[[], Any], what: Callable[[], None]) -> tuple[Any, int]:
    """Do some work, with something happening at the given call of a Python function; returns how many calls it made."""
    count = 0

    def profile(frame: FrameType, event: str, argument: object) -> None:
        nonlocal count
        if event == "call":
            count += 1
            if count == number:
                sys.setprofile(None)
                what()

    sys.setprofile(profile)
    try:
        return work(), count
    finally:
        sys.setprofile(None)


def stopped_at_moments(work: Callable[[], Any]) -> list[Any]:
    """What some work returns when it is stopped at one of several moments, evenly over all its calls."""
    work()  # imports what it needs
    _, count = at_call(0, work, lambda: None)
    assert count > 1000
    moments = [count * (2 * number + 1) // (2 * NUM_MOMENTS) for number in range(NUM_MOMENTS)]
    return [at_call(moment, work, lambda: signal.raise_signal(signal.SIGTERM))[0] for moment in moments]


COMMANDS = {
    "generate": ["generate", "a", "b", "--num-inference-steps", "2", "--overwrite", "--grid"],
    "data check": ["data", "check", "DATA", "--report", "report"],
    "init": ["init", "DATA", "--output"],
    "info": ["info", "emoji"],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_signal_in_any_phase_ends_a_command_in_one_line(
    name: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [str(folder / "data") if word == "DATA" else word for word in COMMANDS[name]]
    number = 0

    def run() -> tuple[int, str]:
        nonlocal number
        number += 1
        monkeypatch.setenv("LDM_CACHE_DIR", str(tmp_path / f"cache-{number}"))
        last = [f"{number}.yaml"] if name == "init" else []
        done = CliRunner().invoke(app, [*arguments, *last])
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        return done.exit_code, done.stderr

    for code, said in stopped_at_moments(run):
        assert (code, said.count("\n"), said[:7]) == (143, 1, "stopped"), said
    assert not list(tmp_path.rglob(".tmp-*"))
    if name == "data check":  # what was read is kept, not only by the two calls that ended
        assert len(list(tmp_path.glob("cache-*/facts/*"))) > 2


def test_a_signal_in_any_phase_of_a_training_ends_it_in_one_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    number = 0

    def run() -> tuple[int, str]:
        nonlocal number
        number += 1
        run_dir = tmp_path / f"run-{number}"
        config = write_config(tmp_path / f"{number}.yaml", AUTOENCODER, folder / "data", run_dir, num_steps=2)
        capsys.readouterr()
        code = autoencoder.main([str(config)])
        return code, capsys.readouterr().err

    ended = stopped_at_moments(run)
    for code, said in ended:
        lines = [line for line in said.splitlines() if line.startswith("stopped")]
        assert code == 143 and said.splitlines()[-1:] == lines and "Traceback" not in said, said
    assert any("saved at step" in said for _, said in ended)
    assert not list(tmp_path.rglob(".tmp-*"))
    assert yaml.safe_load((tmp_path / "1.yaml").read_text())["num_steps"] == 2

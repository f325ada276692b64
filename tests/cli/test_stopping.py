"""A signal in any phase of a command ends it in one line, and leaves nothing half-written."""

import os
import signal
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from ldm.cli.app import app
from ldm.data.image_index import ImageIndex
from ldm.io.stopping import StopAtOnce
from ldm.models.loading import source as model_source
from tests.support.tiny_generate import save_model
from tests.support.tiny_runs import AUTOENCODER, write_config, write_squares
from train import autoencoder

NUM_MOMENTS = 5
MOST_CALLS = 25
PIPE_BYTES = 60_000
"""What fits into a pipe that nothing reads yet."""
pytestmark = [
    # a file may be opened just before the signal, and closed by the interpreter
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    # Python 3.12 warns of a fork beside threads, such as those of the workers' connection
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),
]


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


def stopped_after(seconds: float, work: Callable[[], Any]) -> Any:
    """What some work returns if a signal arrives after some seconds.

    One that arrives before the command handles signals, or after it, waits until it does: in a process of its own they
    are handled from the start (`tests/io/test_signals.py`).
    """
    outside = signal.getsignal(signal.SIGTERM)

    def send(number: int, frame: FrameType | None) -> None:
        if signal.getsignal(signal.SIGTERM) is outside:
            signal.setitimer(signal.ITIMER_REAL, 0.001)
        else:
            signal.raise_signal(signal.SIGTERM)

    former = signal.signal(signal.SIGALRM, send)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        return work()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)


def in_copy(work: Callable[[], tuple[int, str]]) -> tuple[int, str]:
    """What some work returns in a copy of this process.

    A signal may arrive inside `no_grad.__enter__` or the like and leave gradients off: a state that must not outlive
    the command, as it does not for a user.
    """
    said_here, said_there = os.pipe()
    copy = os.fork()
    if copy == 0:
        code = 1
        try:
            torch.set_num_threads(1)  # the copy has none of the other threads
            code, said = work()
        except BaseException:
            said = traceback.format_exc()
        finally:
            os.write(said_there, said.encode()[:PIPE_BYTES])
            os._exit(code)
    os.close(said_there)
    with os.fdopen(said_here) as pipe:
        said = pipe.read()
    return os.waitstatus_to_exitcode(os.waitpid(copy, 0)[1]), said


def stopped_at_moments(work: Callable[[int], tuple[int, str]]) -> list[str]:
    """What some numbered work prints when it is stopped at one of several moments, evenly over the time that it takes.

    Each call has its own number.
    """
    work(0)  # imports what it needs
    started = time.monotonic()
    assert work(1)[0] == 0
    needed = time.monotonic() - started
    stopped: list[str] = []
    for number in range(2, 2 + MOST_CALLS):
        moment = needed * (len(stopped) + 0.5) / NUM_MOMENTS
        code, said = in_copy(partial(stopped_after, moment, partial(work, number)))
        assert code in (0, 143), said
        if code:
            stopped.append(said)
        else:
            needed *= 0.8  # the measured call was slower, as on a busy machine
        if len(stopped) == NUM_MOMENTS:
            return stopped
    raise AssertionError(f"only {len(stopped)} of {MOST_CALLS} calls were stopped")


COMMANDS = {
    "generate": ["generate", "a", "b", "--num-inference-steps", "2", "--overwrite", "--grid"],
    "data check": ["data", "check", "DATA", "--report", "report"],
    "init": ["init", "DATA", "--output"],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_signal_in_any_phase_ends_a_command_in_one_line(
    name: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [str(folder / "data") if word == "DATA" else word for word in COMMANDS[name]]

    def run(number: int) -> tuple[int, str]:
        monkeypatch.setenv("LDM_CACHE_DIR", str(tmp_path / f"cache-{number}"))
        last = [f"{number}.yaml"] if name == "init" else []
        done = CliRunner().invoke(app, [*arguments, *last])
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        return done.exit_code, done.stderr

    for said in stopped_at_moments(run):
        assert (said.count("\n"), said[:7]) == (1, "stopped"), said
    assert not list(tmp_path.rglob(".tmp-*"))


def test_the_images_read_before_a_signal_are_not_read_again(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put, stamps = ImageIndex.put, []

    def put_and_stop(self: ImageIndex, stamp: Any, facts: Any) -> None:
        put(self, stamp, facts)
        stamps.append(stamp)
        if len(stamps) == 3:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(ImageIndex, "put", put_and_stop)
    done = CliRunner().invoke(app, ["data", "check", str(folder / "data"), "--report", "report"])
    assert (done.exit_code, done.stderr.splitlines()[-1][:7]) == (143, "stopped")
    kept = ImageIndex(tmp_path / "cache")
    assert len(stamps) == 3 and all(kept.get(stamp) for stamp in stamps)


def test_a_signal_as_soon_as_it_is_handled_ends_a_command_in_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    install = signal.signal

    def interrupted(number: int, handler: Any) -> Any:
        former = install(number, handler)
        if number == signal.SIGTERM and isinstance(handler, StopAtOnce):
            signal.raise_signal(number)
        return former

    monkeypatch.setattr(signal, "signal", interrupted)
    done = CliRunner().invoke(app, ["doctor"])
    assert (done.exit_code, done.stderr) == (143, "stopped\n")


def test_a_signal_before_the_first_step_ends_a_training_in_one_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(*arguments: Any, **options: Any) -> None:
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(autoencoder, "read_data", read)
    config = write_config(tmp_path / "config.yaml", AUTOENCODER, folder / "data", tmp_path / "run")
    assert autoencoder.main([str(config)]) == 143
    assert capsys.readouterr().err == "stopped; run the same command to go on\n"
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_signal_in_any_phase_of_a_training_ends_it_in_one_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(number: int) -> tuple[int, str]:
        run_dir = tmp_path / f"run-{number}"
        config = write_config(tmp_path / f"{number}.yaml", AUTOENCODER, folder / "data", run_dir, num_steps=3)
        capsys.readouterr()
        code = autoencoder.main([str(config)])
        return code, capsys.readouterr().err

    ended = stopped_at_moments(run)
    for said in ended:
        lines = [line for line in said.splitlines() if line.startswith("stopped")]
        assert said.splitlines()[-1:] == lines and "Traceback" not in said, said
    assert not list(tmp_path.rglob(".tmp-*"))

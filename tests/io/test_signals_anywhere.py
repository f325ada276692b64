"""A signal at any call made while a folder or file is written: it is whole or absent, and nothing stays behind."""

import os
import signal
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import FrameType

import pytest

from ldm.errors import LdmWarning
from ldm.io.files import manifest_fault, write_bytes
from ldm.io.folders import new_folder
from ldm.io.stopping import Stopped, deferring_signals, stopping
from ldm.io.temporary import working_folder
from tests.support.signal_places import signalled_at_call

# a file may be opened just before the signal, and closed by the interpreter
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def fail(number: int, frame: FrameType | None) -> None:
        raise AssertionError("a signal was not handled")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "fsync", lambda handle: None)  # which takes most of the time
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    former = signal.signal(signal.SIGTERM, fail)
    yield
    signal.signal(signal.SIGTERM, former)


def write_folder() -> None:
    with new_folder(Path("made"), replace=True) as folder:
        (folder / "b.txt").write_text("b")


def write_file() -> None:
    write_bytes(Path("made"), b"whole")


def use_working_folder() -> None:
    with working_folder("test") as folder:
        (folder / "a.txt").write_text("a")


@pytest.mark.parametrize("work", [write_folder, write_file, use_working_folder])
def test_what_is_written_is_whole_and_nothing_stays_behind(work: Callable[[], None]) -> None:
    """Each call finds what the one before left: the folder or file to be replaced, and what it should have removed."""

    def run() -> None:
        with suppress(Stopped), stopping():
            work()

    made = Path("made")
    work()
    existed = made.exists()
    ordinal = 1
    with warnings.catch_warnings():
        warnings.simplefilter("error", LdmWarning)  # nothing of ours is taken for another's
        while signalled_at_call(ordinal, signal.SIGTERM, run):
            ordinal += 1
            assert ordinal < 1000, "each call leaves more behind"
            assert made.exists() == existed
            if work is write_folder:
                assert manifest_fault(made) is None and (made / "b.txt").read_text() == "b"
        work()
    assert ordinal > 10
    assert [path.name for path in Path().iterdir()] == ["made"] * existed


def test_a_removal_that_was_killed_is_finished_by_the_next_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """The list of the old files is removed last, or the rest would look like the user's own."""

    class Killed(BaseException):
        pass

    def killed(path: Path, missing_ok: bool = False) -> None:
        if path.name == "manifest.json":
            raise Killed
        unlink(path, missing_ok)

    write_folder()
    unlink = Path.unlink
    with monkeypatch.context() as patch, suppress(Killed):
        patch.setattr(Path, "unlink", killed)
        write_folder()
    write_folder()
    assert [path.name for path in Path().iterdir()] == ["made"]


def test_a_deferred_signal_is_answered_at_the_end_of_the_outermost_block() -> None:
    done: list[str] = []
    with pytest.raises(Stopped) as caught, stopping():
        with deferring_signals():
            with deferring_signals():
                signal.raise_signal(signal.SIGUSR1)
                done.append("inner")
            done.append("outer")
        done.append("too far")
    assert (done, caught.value.exit_code) == (["inner", "outer"], 143)

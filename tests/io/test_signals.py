"""Signals: the first one raises, whatever libraries make of it; a second one ends the process."""

import ast
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ldm.io.stopping import STOP_SIGNALS, Stopped, handling, stopping

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def default_handlers() -> None:
    for number in STOP_SIGNALS:  # the tests themselves may run under nohup
        if number != signal.SIGINT:
            signal.signal(number, signal.SIG_DFL)


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_every_signal_that_stops_a_program_raises(number: signal.Signals) -> None:
    with pytest.raises(Stopped) as caught, stopping():
        signal.raise_signal(number)
    assert caught.value.exit_code == (130 if number == signal.SIGINT else 143)


def test_what_a_library_makes_of_it_does_not_matter() -> None:
    with pytest.raises(Stopped), stopping():
        try:
            signal.raise_signal(signal.SIGTERM)
        except BaseException as error:
            raise ImportError("a library's own words") from error


def test_other_errors_and_ignored_signals_are_left_alone() -> None:
    with pytest.raises(ZeroDivisionError), stopping():
        _ = 1 // 0
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with stopping():
        signal.raise_signal(signal.SIGHUP)
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


def test_the_former_handlers_are_restored() -> None:
    before = [signal.getsignal(number) for number in STOP_SIGNALS]
    with handling(lambda number, frame: None):
        assert all(signal.getsignal(number) not in before for number in STOP_SIGNALS)
    assert [signal.getsignal(number) for number in STOP_SIGNALS] == before


def test_a_second_signal_ends_the_process() -> None:
    pid = os.fork()
    if not pid:
        with stopping():
            try:
                signal.raise_signal(signal.SIGUSR1)
            finally:
                signal.raise_signal(signal.SIGUSR2)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 143


@pytest.mark.parametrize("module", ["ldm", "train.run.start"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_during_the_imports_is_answered_in_one_line(module: str, number: signal.Signals) -> None:
    """The hook sends it when the first module is imported that comes after the handlers."""
    code = (
        "import os, runpy, signal, sys\n"
        "class Hook:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name in ('typer', 'train.denoiser'):\n"
        f"            signal.raise_signal({int(number)})\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "sys.meta_path.insert(0, Hook())\n"
        f"sys.argv = ['x', 'denoiser', 'none.yaml']\n"
        f"runpy.run_module({module!r}, run_name='__main__')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (128 + number, "")
    assert done.stderr.startswith("stopped") and done.stderr.count("\n") == 1


def test_ctrl_c_reaches_no_process_that_could_print_a_traceback() -> None:
    """Ctrl-C in a terminal reaches all processes of a session: what we start is in its own, or what it says is read."""
    trees = (ast.parse(path.read_text()) for path in (ROOT / "ldm").rglob("*.py"))
    calls = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Call)]
    for call in calls:
        if ast.unparse(call.func).startswith("subprocess."):
            given = {keyword.arg for keyword in call.keywords}
            assert given & {"start_new_session", "capture_output", "stderr"}, ast.unparse(call)

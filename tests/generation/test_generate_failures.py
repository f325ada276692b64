"""How `ldm generate --num-processes N` fails: all processes stop, and one line says why."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer import Exit

from ldm.cli import processes
from ldm.cli.generate_processes import Watch, end_as_one, make_in_processes
from ldm.cli.processes import Failure, run_apart
from ldm.errors import UserError
from tests.support.tiny_generate import files, generate, job_of, save_model

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("models"))


@pytest.fixture(autouse=True)
def place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


def apart(code: str, num_processes: int = 2) -> Failure | None:
    return run_apart([sys.executable, "-c", code], os.environ, num_processes)


def test_a_failing_process_is_reported_and_ends_the_others(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(processes, "APART_GRACE_SEC", 0.2)
    code = "import os, sys, time\nif os.environ['RANK'] == '0': time.sleep(600)\nsys.exit('no')"
    assert apart(code) == Failure(1, 1, "no\n")
    assert apart("import sys; print('careful', file=sys.stderr)") is None
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("failure", "kind", "words"),
    [
        (Failure(1, 2, "error: no\n"), Exit, "error: no\n"),
        (Failure(1, 1, "Traceback\n"), Exit, "process 1 of 3 failed:\nTraceback\n"),
        (Failure(0, 128 + 9, ""), UserError, "process 0 of 3 was killed by signal 9; 1 of 2 written"),
        (Failure(0, 128 + 2, "Traceback\n"), KeyboardInterrupt, "stopped; 1 of 2 written"),
    ],
)
def test_how_it_ends(
    failure: Failure, kind: type[BaseException], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(kind) as ended:
        end_as_one(failure, 3, "1 of 2 written", "use fewer processes")
    assert words in f"{ended.value}{capsys.readouterr().err}"


@pytest.mark.slow
def test_an_error_of_all_is_one_line(model: Path) -> None:
    result = generate("a", "b", "--batch-size", 1, "--num-processes", 2, "--model", "absent")
    assert result.exit_code == 2
    assert result.stderr.startswith("error: no model 'absent'")
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.slow
def test_a_killed_process_ends_all_and_is_named(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "APART_GRACE_SEC", 0.2)
    read = Watch.read

    def kill_once(self: Watch) -> None:
        read(self)
        running = subprocess.run(
            ["pgrep", "-P", str(os.getpid()), "-f", "generate_processes"], capture_output=True
        )
        for pid in running.stdout.split()[:1]:
            os.kill(int(pid), signal.SIGKILL)

    monkeypatch.setattr(Watch, "read", kill_once)
    with pytest.raises(
        UserError, match=r"process 0 of 2 was killed by signal 9; 0 of 2 images written to outputs"
    ):
        make_in_processes(job_of(model, "a", "b"), 2)


@pytest.mark.slow
def test_ctrl_c_stops_all_and_one_process_can_make_the_rest(model: Path) -> None:
    """The signal is sent to the whole group, as Ctrl-C in a terminal is."""
    prompts = [str(number) for number in range(20)]
    options = ["--model", str(model), "--batch-size", "1", "--num-inference-steps", "30"]
    call = [
        sys.executable,
        "-m",
        "ldm",
        "generate",
        *prompts,
        *options,
        "--num-processes",
        "2",
        "--output",
        "cut",
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    parent = subprocess.Popen(
        call, env=environment, start_new_session=True, stderr=subprocess.PIPE, text=True
    )
    while not list(Path().glob("cut/*.png")):
        assert parent.poll() is None
        time.sleep(0.02)
    os.killpg(parent.pid, signal.SIGINT)
    said = parent.communicate()[1]
    done = files("cut")
    assert parent.returncode == 130
    assert said == f"stopped; {len(done)} of 20 images written to cut\n"
    assert 0 < len(done) < 20
    assert all(name.endswith(".png") and not name.startswith(".") for name in done)
    assert generate(*prompts, *options, "--output", "cut", "--resume").exit_code == 0
    assert generate(*prompts, *options, "--output", "whole").exit_code == 0
    assert files("cut") == files("whole")

"""`ldm train`: which program runs, in how many processes, and how signals and exit codes are passed on."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ldm.cli import processes
from ldm.cli.app import app
from ldm.cli.processes import run_processes
from ldm.cli.programs import find_config, find_home, shipped_configs
from ldm.errors import UserError
from tests.support.tiny_runs import AUTOENCODER, write_config, write_squares
from train.settings.schema import SETTINGS

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}


def train(*arguments: object) -> int:
    return CliRunner().invoke(app, ["train", *map(str, arguments)]).exit_code


# The program


def test_train_runs_the_program_and_not_the_users_train_py(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in ("train.py", "ldm.py"):
        (tmp_path / name).write_text("raise SystemExit('the file of the user was run')")
    data = write_squares(tmp_path / "data")
    write_config(tmp_path / "tiny.yaml", AUTOENCODER, data, tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    assert train("tiny.yaml", "num_steps=1", "optim.num_warmup_steps=0") == 0, capfd.readouterr().err
    assert (tmp_path / "run" / "report.json").is_file()


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    data = write_squares(tmp_path / "data")
    weights = []
    for count in (1, 2):
        run_dir = tmp_path / f"run-{count}"
        config = write_config(tmp_path / f"{count}.yaml", AUTOENCODER, data, run_dir)
        assert train(config, "--num-processes", count) == 0
        weights.append(load_file(run_dir / "autoencoder" / "diffusion_pytorch_model.safetensors"))
    one, two = weights
    assert all((one[key] - two[key]).abs().max() < 1e-4 for key in one)


def test_a_shipped_configuration_is_found_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = find_home()
    assert (home.root, home.package) == (ROOT, "train")
    assert home.programs == sorted(SETTINGS)
    names = shipped_configs(home)
    assert "emoji/autoencoder" in names
    for name in names:
        for spelled in (name, f"{name}.yaml"):
            assert find_config(spelled, home) == ROOT / "configs" / f"{name}.yaml"
    monkeypatch.chdir(tmp_path)
    Path("emoji").mkdir()
    Path("emoji/autoencoder.yaml").touch()
    assert find_config("emoji/autoencoder.yaml", home) == Path("emoji/autoencoder.yaml")


def test_an_installed_package_has_its_programs_beside_it(tmp_path: Path) -> None:
    for name in ("ldm", "train", "ldm_train/configs"):
        (tmp_path / name).mkdir(parents=True)
    with pytest.raises(UserError, match="training programs are not in"):
        find_home(tmp_path / "ldm")
    (tmp_path / "train" / "denoiser.py").touch()
    home = find_home(tmp_path / "ldm")
    assert (home.package, home.configs) == ("train", tmp_path / "configs")
    assert home.environment({"PYTHONPATH": "x"})["PYTHONPATH"] == f"{tmp_path}{os.pathsep}x"
    (tmp_path / "ldm_train" / "denoiser.py").touch()
    home = find_home(tmp_path / "ldm")
    assert (home.package, home.configs) == ("ldm_train", tmp_path / "ldm_train" / "configs")
    assert home.environment({})["PYTHONSAFEPATH"] == "1"


# Processes


def run_code(code: str, num_processes: int = 1) -> int:
    return run_processes([sys.executable, "-c", code], os.environ, num_processes)


@pytest.mark.parametrize(
    ("code", "expected"),
    [("pass", 0), ("raise SystemExit(3)", 3), ("import os; os.kill(os.getpid(), 9)", 128 + 9)],
)
def test_the_exit_code_is_returned(code: str, expected: int) -> None:
    assert run_code(code) == expected


COUNT_SIGNALS = """
import os, signal, sys, time
path = sys.argv[1] + os.environ.get("RANK", "")
seen = []
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda number, frame: seen.append(number))
open(path, "x").close()
while not seen:
    time.sleep(0.01)
time.sleep(0.5)  # a second one would come now
open(path, "w").write(repr([int(number) for number in seen]))
sys.exit(128 + seen[0])
"""
PARENT = """
import os, signal, sys
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_DFL)  # the tests themselves may run under nohup
from ldm.cli.processes import run_processes
sys.exit(run_processes([sys.executable, "-c", sys.argv[1], sys.argv[2]], os.environ, int(sys.argv[3])))
"""


@pytest.mark.parametrize(
    ("sent", "arrives", "num_processes"),
    [
        (signal.SIGINT, 2, 1),
        (signal.SIGTERM, 15, 1),
        (signal.SIGHUP, 15, 1),
        (signal.SIGUSR1, 15, 1),
        (signal.SIGINT, 2, 2),
    ],
)
def test_a_signal_reaches_each_process_once(
    tmp_path: Path, sent: signal.Signals, arrives: int, num_processes: int
) -> None:
    """It is sent to the whole process group, like Ctrl-C in a terminal."""
    base = tmp_path / "signals"
    arguments = [PARENT, COUNT_SIGNALS, str(base), str(num_processes)]
    parent = subprocess.Popen([sys.executable, "-c", *arguments], env=ENVIRONMENT, start_new_session=True)
    expected = [base] if num_processes == 1 else [Path(f"{base}{rank}") for rank in range(num_processes)]
    while not all(path.exists() for path in expected):
        assert parent.poll() is None
        time.sleep(0.01)
    os.killpg(parent.pid, sent)
    assert parent.wait() == 128 + arrives
    assert [path.read_text() for path in expected] == [f"[{arrives}]"] * num_processes


def test_an_ignored_hangup_stays_ignored() -> None:
    former = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert run_code("import os, signal; os.kill(os.getppid(), signal.SIGHUP)") == 0
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, former)


def test_the_previous_handlers_are_restored() -> None:
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    run_code("pass")
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before


def test_processes_can_find_each_other(tmp_path: Path) -> None:
    keys = ["WORLD_SIZE", "LOCAL_WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"]
    code = (
        "import os, pathlib; e = os.environ; "
        f"pathlib.Path({str(tmp_path)!r}, e['RANK']).write_text(' '.join(e[k] for k in {keys}))"
    )
    assert run_code(code, 3) == 0
    told = [(tmp_path / str(rank)).read_text().split() for rank in range(3)]
    assert [line[:4] for line in told] == [["3", "3", str(rank), "127.0.0.1"] for rank in range(3)]
    assert len({line[4] for line in told}) == 1


def test_the_failure_of_one_ends_the_others(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(processes, "GRACE_SEC", 0.3)
    stubborn = "signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
    code = (
        "import os, signal, sys, time\n"
        f"if os.environ['RANK'] == '0': {stubborn}\n"
        "print('error: out of memory', file=sys.stderr); sys.exit(7)"
    )
    assert run_code(code, 2) == 7
    assert capfd.readouterr().err == "process 1 of 2 failed:\nerror: out of memory\n"


def test_an_error_of_all_processes_is_printed_once(capfd: pytest.CaptureFixture[str]) -> None:
    assert run_code("import sys; print('error: no data', file=sys.stderr); sys.exit(2)", 3) == 2
    assert capfd.readouterr().err == "error: no data\n"

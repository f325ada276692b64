"""Two runs on one folder: the second refuses and names the first; a killed holder releases its lock."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ldm.config import to_yaml
from ldm.errors import UserError
from ldm.io.locks import LOCK, FolderLock
from tests.support.tiny_training import PointLoss, Points, make_settings, train
from train.run.program import run_program
from train.run.run import Run
from train.settings.shared import TrainSettings

ROOT = Path(__file__).parents[2]
HOLD = """
import os, sys, time
from pathlib import Path
from ldm.io.locks import FolderLock
lock = FolderLock(Path(sys.argv[1]))
if not os.fork():  # like a data loader worker, the child outlives its killed parent for a while
    sys.stdout.close()
    time.sleep(600)
    os._exit(0)
print("held", flush=True)
time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator["subprocess.Popen[str]"]:
    """Another process that holds the lock, with a forked child."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    assert process.stdout and process.stdout.readline() == "held\n"
    try:
        yield process
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()


def test_the_second_run_refuses_until_the_first_has_ended(
    tmp_path: Path, holder: "subprocess.Popen[str]", capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "c.yaml"
    config.write_text(to_yaml(make_settings(tmp_path, num_steps=1)))
    for _ in range(2):  # refusing once does not change the lock
        assert run_program(TrainSettings, lambda settings: print(Run(settings)), [str(config)]) == 2
        error = f"error: {tmp_path} is in use by process {holder.pid} on {os.uname().nodename}: wait until it"
        assert capsys.readouterr().err.startswith(error)
    assert {path.name for path in tmp_path.iterdir()} == {"c.yaml", LOCK}
    holder.kill()
    holder.wait()
    assert train(make_settings(tmp_path, num_steps=1)).step == 1


def test_a_run_that_finished_before_the_lock_was_taken_is_noticed(tmp_path: Path) -> None:
    """If the directory does not exist yet, a run takes the lock only when it creates it, and then checks again."""
    run_dir = tmp_path / "run"
    early = Run(make_settings(run_dir, num_steps=1))
    train(make_settings(run_dir, num_steps=1, optim={"learning_rate": 0.5}))
    before = (run_dir / "config.yaml").read_bytes()
    with pytest.raises(UserError, match=r"optim\.learning_rate was 0\.5, now 0\.01"):
        early.train(PointLoss(), Points(), bucket_of=["all"] * 7, preview=lambda state, path: None)
    assert (run_dir / "config.yaml").read_bytes() == before


def test_the_lock_names_its_holder_and_is_released(tmp_path: Path) -> None:
    lock = FolderLock(tmp_path)
    assert json.loads((tmp_path / LOCK).read_text()) == {"pid": os.getpid(), "host": os.uname().nodename}
    handles = len(os.listdir("/dev/fd"))
    del lock
    assert len(os.listdir("/dev/fd")) == handles - 1


def test_a_missing_folder_cannot_be_locked(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        FolderLock(tmp_path / "none")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        FolderLock(tmp_path / "file")


def test_a_process_that_locks_a_folder_twice_holds_it_until_both_are_released(tmp_path: Path) -> None:
    first, second = FolderLock(tmp_path), FolderLock(tmp_path)
    attempt = "import sys; from pathlib import Path; from ldm.io.locks import FolderLock; FolderLock(Path(sys.argv[1]))"
    command = [sys.executable, "-c", attempt, str(tmp_path)]
    del second
    assert (
        f"in use by process {os.getpid()} on"
        in subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stderr
    )
    del first
    assert subprocess.run(command, cwd=ROOT).returncode == 0

"""Two runs on one folder: the second refuses and names the first; a lock whose holder was killed is none."""

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
if not os.fork():  # as a loader's worker does, the child lives on for a while when its parent is killed
    sys.stdout.close()
    time.sleep(600)
    os._exit(0)
print("held", flush=True)
time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator["subprocess.Popen[str]"]:
    """Another process that holds the folder, and a child of it."""
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
    for _ in range(2):  # having refused once leaves the lock as it was
        assert run_program(TrainSettings, lambda settings: print(Run(settings)), [str(config)]) == 2
        error = (
            f"error: {tmp_path} is in use by process {holder.pid} on {os.uname().nodename}: wait for its end"
        )
        assert capsys.readouterr().err.startswith(error)
    assert {path.name for path in tmp_path.iterdir()} == {"c.yaml", LOCK}
    holder.kill()
    holder.wait()
    assert train(make_settings(tmp_path, num_steps=1)).step == 1


def test_a_run_that_came_and_went_before_the_lock_was_taken_is_seen(tmp_path: Path) -> None:
    """A run takes the lock of a directory that is not there yet only when it makes it, and looks again then."""
    run_dir = tmp_path / "run"
    early = Run(make_settings(run_dir, num_steps=1))
    train(make_settings(run_dir, num_steps=1, optim={"learning_rate": 0.5}))
    before = (run_dir / "config.yaml").read_bytes()
    with pytest.raises(UserError, match=r"optim\.learning_rate was 0\.5, now 0\.01"):
        early.train(PointLoss(), Points(), bucket_of=["all"] * 7, preview=lambda state, path: None)
    assert (run_dir / "config.yaml").read_bytes() == before


def test_the_lock_says_who_has_it_and_is_given_back(tmp_path: Path) -> None:
    lock = FolderLock(tmp_path)
    assert json.loads((tmp_path / LOCK).read_text()) == {"pid": os.getpid(), "host": os.uname().nodename}
    handles = len(os.listdir("/dev/fd"))
    del lock
    assert len(os.listdir("/dev/fd")) == handles - 1


def test_a_folder_that_is_not_there_cannot_be_held(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        FolderLock(tmp_path / "none")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        FolderLock(tmp_path / "file")

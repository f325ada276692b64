"""After SIGKILL, at a file operation of a checkpoint or at any moment, the resumed run ends like an undisturbed one."""

import os
import sys
from pathlib import Path

import pytest

from tests.support.kill_driver import CHANGES
from tests.support.tiny_launch import forked
from tests.support.tiny_training import assert_same_run, make_settings, train

SELDOM = {**CHANGES, "save_every": 1000}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run."""
    run_dir = tmp_path_factory.mktemp("whole")
    train(make_settings(run_dir, **SELDOM))
    return run_dir


def kill(*arguments: object) -> list[int]:
    """Kill runs; returns how many were killed at file operations and at random moments."""
    command = [sys.executable, "-m", "tests.support.kill_driver", *map(str, arguments)]
    driver = forked(command, env=os.environ, timeout=300)
    assert driver.returncode == 0, driver.stderr
    return [int(number) for number in driver.stdout.split()]


# For a checkpoint five files are created, made readable, synced and read again, a folder is renamed, and an older one
# removed: about 60 file operations.
@pytest.mark.parametrize(
    ("stride", "number"), [(7, 3), pytest.param(1, 20, marks=pytest.mark.slow)], ids=["some", "all"]
)
def test_kill_9_while_a_checkpoint_is_written_or_at_any_moment_loses_nothing(
    tmp_path: Path, whole: Path, stride: int, number: int
) -> None:
    killed = kill(tmp_path / "boundaries", stride, tmp_path / "moments", number)
    assert (
        killed[0] * stride > 40 and killed[1] > 0
    )  # on a fast machine the run may end before all are killed
    for name in ("boundaries", "moments"):
        train(make_settings(tmp_path / name, **SELDOM))
        assert not list((tmp_path / name).rglob(".*"))
        assert_same_run(tmp_path / name, whole)

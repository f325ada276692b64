"""Start `tests.support.launch_driver` in several processes, as a user starts training, and wait for the end."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from tests.support.launch_driver import Job

ROOT = Path(__file__).parents[2]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
TIMEOUT_SEC = 120


def driver(file: Path, jobs: list[Job]) -> list[str]:
    """A launcher's arguments for doing the jobs."""
    file.write_text(json.dumps(jobs))
    return ["-m", "tests.support.launch_driver", str(file)]


def start(command: list[str], **environment: str) -> "subprocess.Popen[str]":
    """Start a launcher in its own session, so that nothing it starts outlives `finish`."""
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(*launchers: "subprocess.Popen[str]") -> list[str]:
    """Returns each launcher's stderr, and asserts that all exited with 0."""
    try:
        said = [launcher.communicate(timeout=TIMEOUT_SEC)[1] for launcher in launchers]
    finally:
        for launcher in launchers:
            if launcher.poll() is None:
                # torchrun ends its workers, each of which has its own session
                launcher.send_signal(signal.SIGTERM)
                print(launcher.communicate()[1])
    for launcher, text in zip(launchers, said, strict=True):
        assert launcher.returncode == 0, text
    return said

"""Start `tests.support.launch_driver` in several processes, as a user starts training, and wait for the end.

`train_together` forks the processes from a server that has imported everything once, which saves seconds for each. What
is about the launcher itself starts torchrun.
"""

import json
import os
import signal
import subprocess
import sys
from multiprocessing import get_context
from pathlib import Path
from socket import socket

from tests.support.launch_driver import Job, do_all

ROOT = Path(__file__).parents[2]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
TIMEOUT_SEC = 120
FORKS = get_context("forkserver")
FORKS.set_forkserver_preload(["tests.support.launch_driver", "train.denoiser"])


def train_together(jobs: list[Job], num_processes: int = 2) -> None:
    """Do the jobs in several processes, with the environment that torchrun gives them; asserts that all succeed."""
    with socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": num_processes, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    processes = [
        FORKS.Process(target=do_all, args=(jobs, {**shared, "RANK": rank, "LOCAL_RANK": rank}))
        for rank in range(num_processes)
    ]
    for process in processes:
        process.start()
    try:
        for process in processes:
            process.join(TIMEOUT_SEC)
        assert [process.exitcode for process in processes] == [0] * num_processes
    finally:
        for process in processes:
            process.kill()  # the one that waits for another


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

"""Start `tests.support.launch_driver` in several processes, as a user starts training, and wait for the end.

`train_together` forks the processes from a server that has imported everything once, which saves seconds for each. What
is about the launcher itself starts torchrun.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from socket import socket
from typing import Any

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
    run_together(do_one_rank, jobs, shared, num_processes=num_processes)


def do_one_rank(rank: int, jobs: list[Job], shared: dict[str, Any]) -> None:
    """Do the jobs as one of several processes."""
    do_all(jobs, {**shared, "RANK": rank, "LOCAL_RANK": rank})


def run_together(work: Callable[..., None], *given: Any, num_processes: int = 2) -> None:
    """Call `work(rank, *given)` in several processes at once; asserts that all succeed."""
    processes = [FORKS.Process(target=work, args=(rank, *given)) for rank in range(num_processes)]
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

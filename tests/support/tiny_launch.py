"""Start `tests.support.launch_driver` in several processes, as a user starts training, and wait for the end.

`train_together` and `forked` fork the processes from a server that has imported everything once, which saves seconds
for each. What is about the launcher itself starts torchrun.
"""

import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import get_context
from pathlib import Path
from socket import socket
from typing import Any

import torch

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


def forked(
    command: Sequence[str], *, env: Mapping[str, str], timeout: float = TIMEOUT_SEC, **_: Any
) -> "subprocess.CompletedProcess[str]":
    """Stands for `subprocess.run` with captured text, for `python -m MODULE ...`: the same in a process forked here.

    Not for what depends on how Python starts, such as which folder modules are imported from.
    """
    assert list(command[:2]) == [sys.executable, "-m"]
    with tempfile.TemporaryDirectory() as folder:
        said = [Path(folder) / name for name in ("out", "err")]
        process = FORKS.Process(target=run_module, args=(list(command[2:]), dict(env), os.getcwd(), said))
        process.start()
        process.join(timeout)
        assert process.exitcode is not None, f"{command} did not end"
        out, err = (path.read_text() for path in said)
    return subprocess.CompletedProcess(command, process.exitcode, out, err)


def run_module(arguments: list[str], environment: dict[str, str], folder: str, said: list[Path]) -> None:
    """What `python -m` does, in this process, with its output in two files."""
    for descriptor, path in enumerate(said, start=1):
        with path.open("wb") as file:
            os.dup2(file.fileno(), descriptor)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    torch.set_num_threads(1)
    sys.argv = arguments
    runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)


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

"""Run a program in one or several processes: signals are passed on, and one exit code is returned.

Several processes find each other through the environment variables of torch.distributed, as with torchrun. Unlike
torchrun, each process receives a signal once, and the user sees only the program's own output and exit code.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import IO

from ldm.io.stopping import counts_as, handling
from ldm.io.temporary import temporary_place

POLL_SEC = 0.1
GRACE_SEC = 15.0
"""Time before the other processes get SIGTERM after one has failed, and again before they get SIGKILL."""
APART_GRACE_SEC = 5.0
"""The same for independent processes, which have nothing to report about each other's failure."""


@dataclass(frozen=True)
class Child:
    """A process, and the file that captures its stderr, if it is captured."""

    process: "subprocess.Popen[bytes]"
    errors: IO[bytes] | None


@dataclass(frozen=True)
class Failure:
    """The first process that failed.

    Attributes:
        rank: its number, from 0.
        code: its exit code, as a shell reports it: 128 + n if signal n ended it.
        words: what it wrote to stderr.
    """

    rank: int
    code: int
    words: str


def run_processes(
    command: Sequence[str],
    environment: Mapping[str, str],
    num_processes: int = 1,
    *,
    stdout: int | None = None,
) -> int:
    """Run `command` in `num_processes` processes and wait; returns the exit code of the first that failed, or 0.

    SIGINT is passed on, once; SIGTERM, SIGHUP (a closed terminal), SIGUSR1 and SIGUSR2 as SIGTERM. Only the first
    process writes to stderr, because the errors of the others are mostly the same.

    Args:
        stdout: the file descriptor that they print to; default: our stdout.
    """
    with _running(command, environment, num_processes, num_heard=1, stdout=stdout) as children:
        failed = _wait(children, GRACE_SEC)
        if failed is None:
            return 0
        _show_errors(children, failed)
        return _exit_code(children[failed])


def run_apart(
    command: Sequence[str],
    environment: Mapping[str, str],
    num_processes: int,
    *,
    on_poll: Callable[[], None] = lambda: None,
) -> Failure | None:
    """Run `command` in independent processes; returns None if all succeeded.

    Their stderr is captured for the caller. Once one has failed, the others are stopped soon. Signals are passed on as
    in `run_processes`.

    Args:
        on_poll: called every `POLL_SEC` while they run.
    """
    with _running(command, environment, num_processes, num_heard=0) as children:
        failed = _wait(children, APART_GRACE_SEC, on_poll)
        if failed is None:
            return None
        errors = children[failed].errors
        assert errors is not None
        errors.seek(0)
        return Failure(failed, _exit_code(children[failed]), errors.read().decode(errors="replace"))


@contextmanager
def _running(
    command: Sequence[str],
    environment: Mapping[str, str],
    num_processes: int,
    *,
    num_heard: int,
    stdout: int | None = None,
) -> Iterator[list[Child]]:
    """The child processes; the first `num_heard` write to our stderr. None outlives the block."""
    with ExitStack() as stack:
        environments = _environments(environment, num_processes)
        children = [
            stack.enter_context(_started(command, env, kept=rank >= num_heard, stdout=stdout))
            for rank, env in enumerate(environments)
        ]
        stack.enter_context(_passing_signals(children))
        yield children


def _environments(environment: Mapping[str, str], num_processes: int) -> list[dict[str, str]]:
    """The environment of each process: its rank, and where to find the others."""
    if num_processes == 1:
        return [dict(environment)]
    shared = {
        "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // num_processes)),
        **environment,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
        "WORLD_SIZE": str(num_processes),
        "LOCAL_WORLD_SIZE": str(num_processes),
    }
    return [{**shared, "RANK": str(i), "LOCAL_RANK": str(i)} for i in range(num_processes)]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def _started(
    command: Sequence[str], environment: Mapping[str, str], *, kept: bool, stdout: int | None
) -> Iterator[Child]:
    """A running child process, which does not outlive the block.

    It gets its own session: Ctrl-C in a terminal reaches the whole session, so the child would receive it twice.
    """
    with tempfile.TemporaryFile(dir=temporary_place()) as errors:
        aside = errors if kept else None
        process = subprocess.Popen(
            command,
            env=dict(environment),
            stdout=stdout,
            stderr=aside,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            yield Child(process, aside)
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()


@contextmanager
def _passing_signals(children: Sequence[Child]) -> Iterator[None]:
    """Pass signals that stop a program on instead of stopping; an ignored signal stays ignored (nohup)."""

    def pass_on(number: int, frame: FrameType | None) -> None:
        for child in children:
            child.process.send_signal(counts_as(number))

    with handling(pass_on):
        yield


def _wait(
    children: Sequence[Child], grace_sec: float, on_poll: Callable[[], None] = lambda: None
) -> int | None:
    """Wait until all have finished; returns the rank that failed first, or None.

    Once one has failed, the others could wait for it forever: they get some time to finish, then SIGTERM, then SIGKILL.
    """
    failed: int | None = None
    failed_at = 0.0
    told = False
    while any(child.process.poll() is None for child in children):
        time.sleep(POLL_SEC)
        on_poll()
        if failed is None:
            failed, failed_at = _first_failed(children), time.monotonic()
        elif time.monotonic() - failed_at > (2 if told else 1) * grace_sec:
            for child in children:
                child.process.send_signal(signal.SIGKILL if told else signal.SIGTERM)
            told = True
    return _first_failed(children) if failed is None else failed


def _first_failed(children: Sequence[Child]) -> int | None:
    return next((rank for rank, child in enumerate(children) if child.process.poll()), None)


def _show_errors(children: Sequence[Child], failed: int) -> None:
    """Print the stderr of a failed process other than the first, unless the first failed with the same code."""
    errors = children[failed].errors
    if errors is not None and children[failed].process.returncode != children[0].process.returncode:
        print(f"process {failed} of {len(children)} failed:", file=sys.stderr, flush=True)
        errors.seek(0)
        shutil.copyfileobj(errors, sys.stderr.buffer)
        sys.stderr.flush()


def _exit_code(child: Child) -> int:
    """The exit code as a shell reports it: 128 + n for a process that signal n ended."""
    code = child.process.returncode
    return 128 - code if code < 0 else code

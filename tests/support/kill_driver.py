"""Kills runs of `tiny_training`: `python -m tests.support.kill_driver RUN_DIR STRIDE OTHER_RUN_DIR NUMBER`.

It sends SIGKILL, in the first directory at every STRIDE-th file operation of a checkpoint, in the other NUMBER times at
random moments. Each run is a fork of this process, which imports everything once and computes nothing itself. Every run
resumes what the killed one before it left; none finishes. Prints how many were killed in each directory.
"""

import os
import random
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from accelerate import Accelerator

import train.run.run
from tests.support.tiny_training import make_settings
from tests.support.tiny_training import train as run_to_the_end
from train.run.checkpoints import save_checkpoint

CHANGES: dict[str, Any] = {"num_steps": 100, "save_every": 1, "keep_checkpoints": 1}
WRITING = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.chmod", "os.truncate"}
"""Audit events that Python raises before it changes a file. There are none for fsync and for safetensors' writes."""


def in_a_fork(program: Callable[[], object], watch: Callable[[int], None] = lambda pid: None) -> bool:
    """Run a program in a fork; returns whether it was killed. `watch` gets the process id while it runs."""
    pid = os.fork()
    if not pid:
        try:
            program()
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    watch(pid)
    status = os.waitpid(pid, 0)[1]
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, "a run failed"
    return os.WIFSIGNALED(status)


def train_until_killed(run_dir: Path, boundary: int) -> None:
    """Continue to the next checkpoint, and die before its file operation number `boundary`, or exit after it."""
    left = -1

    def count(event: str, arguments: object) -> None:
        nonlocal left
        if event in WRITING and left > 0:
            left -= 1
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            count("open", ())
            return function(*args)

        return call

    def save(*args: Any) -> None:
        nonlocal left
        left = boundary
        save_checkpoint(*args)
        os._exit(0)

    sys.addaudithook(count)
    os.fsync = counted(os.fsync)
    safetensors.torch.save_file = counted(safetensors.torch.save_file)
    setattr(train.run.run, "save_checkpoint", save)  # noqa: B010  # it is imported there, not exported
    run_to_the_end(make_settings(run_dir, **CHANGES))


def kill_at_boundaries(run_dir: Path, stride: int) -> int:
    """Kill at the first file operation of a checkpoint, then `stride` later, and so on to the last."""
    in_a_fork(partial(train_until_killed, run_dir, 0))  # so that an older checkpoint has to be removed
    return next(
        number
        for number in range(1000)
        if not in_a_fork(partial(train_until_killed, run_dir, 1 + number * stride))
    )


def kill_at_moments(run_dir: Path, number: int) -> int:
    """Kill at random moments."""
    draw = random.Random(0)

    def kill(pid: int) -> None:
        time.sleep(draw.uniform(0.02, 0.25))
        os.kill(pid, signal.SIGKILL)

    return sum(
        in_a_fork(lambda: run_to_the_end(make_settings(run_dir, **CHANGES)), kill) for _ in range(number)
    )


if __name__ == "__main__":
    torch.optim.AdamW(
        [torch.nn.Parameter(torch.ones(1))], fused=True
    )  # import what torch imports on first use
    Accelerator(cpu=True)
    first, stride, second, number = sys.argv[1:]
    print(kill_at_boundaries(Path(first), int(stride)), kill_at_moments(Path(second), int(number)))

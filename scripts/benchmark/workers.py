"""Sides in separate processes, each with its model loaded and warm, that take turns, one at a time.

A side is a function `begin(turns)`. It prepares itself and calls `turns.next` before each piece of work, passing the
result of the previous one. It can do so in a loop of its own (`repeat`), or from a hook deep inside another program.
"""

import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .samples import Sample, Stopwatch

Answer = npt.NDArray[np.float32] | None
Work = Callable[[bool], tuple[Answer, dict[str, float]]]
"""One piece of work: takes whether this is a warm-up; returns its output, and durations of parts of it in seconds."""

PAUSE_SEC = 0.3
"""Pause between turns: waiting threads stop spinning, and the processor cools down equally for all sides."""


@dataclass(frozen=True)
class Report:
    """What a process sends at the end of a turn; before its first turn, the sample is its preparation time."""

    sample: Sample
    output: Answer
    peak_memory_mb: float


class Turns:
    """A worker's side of the turns.

    Attributes:
        warming_up: whether the current turn is a warm-up and does not count.
        work: the work of the current turn, for a side with several.
    """

    def __init__(self, connection: Connection, device: str) -> None:
        self._connection, self._device = connection, device
        self._watch = Stopwatch()
        self.warming_up = False
        self.work = ""

    def next(self, output: Answer = None, details: dict[str, float] | None = None) -> None:
        """End the current turn, or the preparation; returns when the next turn starts.

        Raises:
            SystemExit: there is no next turn.
        """
        sample = self._watch.sample(details=details)
        self._connection.send(Report(sample, output, peak_memory_mb(self._device)))
        told, self.work = self._connection.recv()
        if told == "stop":
            raise SystemExit(0)
        self.warming_up = told == "warm up"
        self._watch = Stopwatch(self._device)


Begin = Callable[[Turns], None]


def repeat(make: Callable[[], Work], turns: Turns) -> None:
    """A side that repeats one piece of work."""
    work = make()
    _work_on(lambda _: work, turns)


def repeat_several(make: Callable[[], Mapping[str, Work]], turns: Turns) -> None:
    """A side with several pieces of work, each done on request."""
    _work_on(make().__getitem__, turns)


def _work_on(work_of: Callable[[str], Work], turns: Turns) -> None:
    output: Answer = None
    details: dict[str, float] = {}
    while True:
        turns.next(output, details)
        output, details = work_of(turns.work)(turns.warming_up)


def repeated(make: Callable[..., Work], *arguments: Any) -> Begin:
    """A side that prepares its work with `make(*arguments)` and then repeats it."""
    return partial(repeat, partial(make, *arguments))


def peak_memory_mb(device: str) -> float:
    """Peak memory of this process in 10^6 bytes: the device's on CUDA, otherwise the machine's.

    `getrusage` cannot be used, because a process inherits its peak from the process that started it.
    """
    if device.startswith("cuda"):
        import torch

        return torch.cuda.max_memory_allocated() / 1e6
    return peak_bytes(Path("/proc/self/status").read_text()) / 1e6


def peak_bytes(status: str) -> int:
    """The peak memory in the text of a process's `/proc/PID/status`."""
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


@dataclass
class Taken:
    """The results of a side's turns.

    Attributes:
        ready_sec: time from the start of its process to its first turn.
        warm_up_sec: time of the warm-up turns, which includes any compilation.
        output: output of its first turn that counts.
        peak_memory_mb: the highest among its processes.
    """

    ready_sec: float = 0.0
    warm_up_sec: float = 0.0
    samples: list[Sample] = field(default_factory=list)
    output: Answer = None
    peak_memory_mb: float = 0.0


@dataclass(frozen=True)
class Side:
    """How to start a side.

    Attributes:
        environments: environment variables, one entry per process; all processes have their turns at the same time.
        works: names of its pieces of work, each with separate turns; empty if it has only one.
    """

    begin: Begin
    environments: tuple[Mapping[str, str], ...] = ({},)
    works: tuple[str, ...] = ()


class Process:
    """A running process of a side; its output goes to a file, which is shown if it fails."""

    def __init__(self, side: Side, number: int, log: Path, device: str) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.log = log
        self._process = context.Process(target=_serve, args=(side.begin, theirs, log, device), daemon=True)
        with _environment(side.environments[number]):  # libraries read it when they are imported
            self._process.start()
        theirs.close()

    def report(self) -> Report:
        """Wait until its turn has ended.

        Raises:
            RuntimeError: the process failed.
        """
        try:
            report: Report = self.connection.recv()
        except EOFError:
            self._process.join()
            said = self.log.read_text(errors="replace")[-4000:]
            raise RuntimeError(f"a side ended with code {self._process.exitcode}\n{said}") from None
        return report

    def stop(self) -> None:
        """Ask it to stop and wait; kill it if it does not."""
        if self._process.is_alive():
            with suppress(OSError):  # it may have ended by now
                self.connection.send(("stop", ""))
            self._process.join(10)
            self._process.kill()
        self._process.join()


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Processes started in the block have these variables too."""
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _serve(begin: Begin, connection: Connection, log: Path, device: str) -> None:
    """The main function of a side's process."""
    with log.open("wb") as file:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(file.fileno(), stream.fileno())
    begin(Turns(connection, device))


@contextmanager
def started(side: Side, folder: Path, device: str) -> Iterator[list[Process]]:
    """Start the processes of a side; they do not outlive the block."""
    processes: list[Process] = []
    try:
        for number in range(len(side.environments)):
            log = Path(tempfile.mkstemp(dir=folder, suffix=".log")[1])
            processes.append(Process(side, number, log, device))
        yield processes
    finally:
        for process in processes:
            process.stop()


def take_turns(
    sides: Mapping[str, Side | Begin], rounds: int, device: str = "cpu", num_warm_ups: int = 1
) -> dict[str, Taken]:
    """Start all sides, then give each side (or each of its works) a turn per round, after some warm-up rounds.

    Returns:
        The results by side, or by work for a side with several.

    Raises:
        RuntimeError: a side failed; the message ends with its last output.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        whole = {name: side if isinstance(side, Side) else Side(side) for name, side in sides.items()}
        running, taken = {}, {work: Taken() for name, side in whole.items() for work in side.works or (name,)}
        for name, side in whole.items():  # one after the other: they would compete for memory and disk
            start = time.perf_counter()
            running[name] = stack.enter_context(started(side, folder, device))
            for process in running[name]:
                process.report()
            ready_sec = time.perf_counter() - start
            for work in side.works or (name,):
                taken[work].ready_sec = ready_sec
        turns = [(name, work) for name, side in whole.items() for work in side.works or (name,)]
        for number in range(-num_warm_ups, rounds):
            for name, work in turns:
                time.sleep(PAUSE_SEC)
                _take_turn(running[name], taken[work], work, counts=number >= 0)
    return taken


def _take_turn(processes: list[Process], taken: Taken, work: str, *, counts: bool) -> None:
    for process in processes:
        process.connection.send(("go" if counts else "warm up", work))
    reports = [process.report() for process in processes]
    taken.peak_memory_mb = max(taken.peak_memory_mb, *(report.peak_memory_mb for report in reports))
    sample = _joined([report.sample for report in reports])
    if not counts:
        taken.warm_up_sec += sample.wall_sec
        return
    taken.samples.append(sample)
    if taken.output is None:
        taken.output = reports[0].output


def _joined(samples: list[Sample]) -> Sample:
    """One sample for processes that worked at the same time, each of which counted the others as foreign."""
    longest = max(samples, key=lambda sample: sample.wall_sec)
    others = sum(sample.own_cpu_sec for sample in samples) - longest.own_cpu_sec
    foreign = max(0.0, longest.foreign_cores - others / longest.wall_sec)
    return replace(longest, own_cpu_sec=longest.own_cpu_sec + others, foreign_cores=foreign)

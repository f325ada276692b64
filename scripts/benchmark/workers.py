"""Sides in separate processes, each with its model loaded and warm, that take turns: one works at a time.

A side is a function `begin(turns)`: it gets ready and calls `turns.next` before each piece of work, with what the piece
before came to. That may be the side's own loop (`repeat`), or deep inside a program that knows nothing of it.
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
"""One piece of work: told whether it only warms up; what came of it, and durations in it in seconds."""

PAUSE_SEC = 0.3
"""Between turns: threads that wait for more work give up spinning, and a hot processor cools alike for all."""


@dataclass(frozen=True)
class Report:
    """What a process says at the end of a turn; before its first turn, the sample is how long it took to get ready."""

    sample: Sample
    output: Answer
    peak_memory_mb: float


class Turns:
    """A worker's side of the turns.

    Attributes:
        warming_up: whether the turn that is on does not count.
        work: the current turn's work, for a side that does several things.
    """

    def __init__(self, connection: Connection, device: str) -> None:
        self._connection, self._device = connection, device
        self._watch = Stopwatch()
        self.warming_up = False
        self.work = ""

    def next(self, output: Answer = None, details: dict[str, float] | None = None) -> None:
        """End the turn that is on, or the preparations; returns when the next one begins.

        Raises:
            SystemExit: there is none.
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
    """A side that does one thing again and again."""
    work = make()
    _work_on(lambda _: work, turns)


def repeat_several(make: Callable[[], Mapping[str, Work]], turns: Turns) -> None:
    """A side that does several things, one per turn, as requested."""
    _work_on(make().__getitem__, turns)


def _work_on(work_of: Callable[[str], Work], turns: Turns) -> None:
    output: Answer = None
    details: dict[str, float] = {}
    while True:
        turns.next(output, details)
        output, details = work_of(turns.work)(turns.warming_up)


def repeated(make: Callable[..., Work], *arguments: Any) -> Begin:
    """The side that prepares with `make(*arguments)` and then repeats that work."""
    return partial(repeat, partial(make, *arguments))


def peak_memory_mb(device: str) -> float:
    """The most that this process has held: on CUDA of the device's memory, else of the machine's, in 10^6 bytes.

    Not `getrusage`, whose figure a process takes over from the one that started it.
    """
    if device.startswith("cuda"):
        import torch

        return torch.cuda.max_memory_allocated() / 1e6
    status = Path("/proc/self/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024 / 1e6


@dataclass
class Taken:
    """What came of a side's turns.

    Attributes:
        ready_sec: from the start of its process to its first turn.
        warm_up_sec: of the turns that do not count; compilation happens in these.
        answer: of its first turn that counts.
        peak_memory_mb: the highest of its processes.
    """

    ready_sec: float = 0.0
    warm_up_sec: float = 0.0
    samples: list[Sample] = field(default_factory=list)
    output: Answer = None
    peak_memory_mb: float = 0.0


@dataclass(frozen=True)
class Side:
    """A side as it is to be started.

    Attributes:
        environments: variables of its processes, one entry a process; each has its turns at the same time.
        works: names of the things that it does, each with turns of its own; none where it does one.
    """

    begin: Begin
    environments: tuple[Mapping[str, str], ...] = ({},)
    works: tuple[str, ...] = ()


class Process:
    """One started process of a side; what it prints goes to a file, shown if it fails."""

    def __init__(self, side: Side, number: int, log: Path, device: str) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.log = log
        self._process = context.Process(target=_serve, args=(side.begin, theirs, log, device), daemon=True)
        with _environment(side.environments[number]):  # libraries read it when they are loaded
            self._process.start()
        theirs.close()

    def report(self) -> Report:
        """Wait for the end of its turn.

        Raises:
            RuntimeError: it failed.
        """
        try:
            report: Report = self.connection.recv()
        except EOFError:
            self._process.join()
            said = self.log.read_text(errors="replace")[-4000:]
            raise RuntimeError(f"a side ended with code {self._process.exitcode}\n{said}") from None
        return report

    def stop(self) -> None:
        """Have it end, and wait for that; by force where it does not."""
        if self._process.is_alive():
            with suppress(OSError):  # it may be gone by now
                self.connection.send(("stop", ""))
            self._process.join(10)
            self._process.kill()
        self._process.join()


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """While it lasts, what is started has these variables too."""
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _serve(begin: Begin, connection: Connection, log: Path, device: str) -> None:
    """What a started process does."""
    with log.open("wb") as file:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(file.fileno(), stream.fileno())
    begin(Turns(connection, device))


@contextmanager
def started(side: Side, folder: Path, device: str) -> Iterator[list[Process]]:
    """The processes of a side, which do not outlive the block."""
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
    """Start all sides; then each, or each of its works, has a turn in each round, after rounds that do not count.

    Returns:
        What came of it by side; of one with several works by the names of these.

    Raises:
        RuntimeError: a side failed; with its last words.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        whole = {name: side if isinstance(side, Side) else Side(side) for name, side in sides.items()}
        running, taken = {}, {work: Taken() for name, side in whole.items() for work in side.works or (name,)}
        for name, side in whole.items():  # one after the other: they would fight for the memory and the disk
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
    """One sample of processes that worked at the same time: each took the others for foreign."""
    longest = max(samples, key=lambda sample: sample.wall_sec)
    others = sum(sample.own_cpu_sec for sample in samples) - longest.own_cpu_sec
    foreign = max(0.0, longest.foreign_cores - others / longest.wall_sec)
    return replace(longest, own_cpu_sec=longest.own_cpu_sec + others, foreign_cores=foreign)

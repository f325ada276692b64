"""Stopping on a signal: the first one lets the program clear up and say so in one line, a second one ends it at once.

Only what `signal` and `os` offer is used, so that this can be imported before anything that takes long.
"""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
"""What stops a program. Slurm and Kubernetes warn with SIGUSR1 or SIGUSR2 before they kill a job."""


class Stopped(KeyboardInterrupt):
    """A signal arrived.

    Attributes:
        number: SIGINT, or SIGTERM for all others.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        super().__init__()

    @property
    def exit_code(self) -> int:
        return 128 + self.number


def counts_as(number: int) -> int:
    """The signal that another one counts as: SIGINT for itself, SIGTERM for all others."""
    return signal.SIGINT if number == signal.SIGINT else signal.SIGTERM


@contextmanager
def handling(handler: Callable[[int, FrameType | None], Any]) -> Iterator[None]:
    """Handle the signals that stop a program inside the block. One that is ignored, as under nohup, stays ignored."""
    former = {n: signal.signal(n, handler) for n in STOP_SIGNALS if signal.getsignal(n) != signal.SIG_IGN}
    try:
        yield
    finally:
        for number, handle in former.items():
            signal.signal(number, handle)


@contextmanager
def deferring_signals() -> Iterator[None]:
    """Answer a signal only at the end of the block, so that what the block does is done whole; a second one at once.

    For short work that must not stop halfway, such as moving a folder into place or removing temporary files. Python
    handles signals in the main thread only, so in other threads there is nothing to defer.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    arrived: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if arrived:
            os._exit(128 + counts_as(number))
        arrived.append(number)

    try:
        with handling(note):
            yield
    finally:
        if arrived:
            signal.raise_signal(arrived[0])


class StopAtOnce:
    """Raises `Stopped` at the first signal; a second one ends the process.

    Attributes:
        number: of the first signal, or 0.
        told: whether the user has been told.
    """

    number = 0
    told = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.number:
            os._exit(128 + counts_as(number))
        self.number = counts_as(number)
        raise Stopped(self.number)

    def raise_if_stopped(self) -> None:
        """Raise `Stopped` if a signal arrived: libraries turn the exception into others, or lose it."""
        if self.number:
            raise Stopped(self.number) from None


@contextmanager
def stopping(stop: StopAtOnce | None = None) -> Iterator[StopAtOnce]:
    """Inside the block a signal raises `Stopped`, which leaves the block whatever libraries make of it.

    Args:
        stop: what answers the signal, for callers that ask it even if the block was never entered.
    """
    stop = stop or StopAtOnce()
    with handling(stop):
        try:
            yield stop
        except Exception:
            stop.raise_if_stopped()
            raise

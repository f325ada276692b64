"""Stopping on a signal: every process stops after the same step, with the state saved."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from ldm.io.signals import Stopped, counts_as, handling

from ..loop.processes import Processes, all_reduce_max


class Interrupted(Exception):
    """A signal arrived; the run was saved."""

    def __init__(self, signal_number: int, step: int) -> None:
        self.exit_code = 128 + signal_number
        super().__init__(f"stopped and saved at step {step}; run the same command to resume")


@dataclass
class StopSignal:
    """Remembers the first signal that stops a program; a second one ends the process at once.

    Attributes:
        number: SIGINT or SIGTERM once a signal has arrived, else 0.
    """

    number: int = 0
    _at_once: bool = False

    @contextmanager
    def watching(self) -> Iterator["StopSignal"]:
        """Handle the signals inside the block, and restore the former handlers afterwards."""
        with handling(self._note):
            yield self

    def cut_short(self, work: Callable[[], None]) -> None:
        """Do work that a signal ends at once, unlike a step, which would leave the state half-changed."""
        try:
            self._at_once = True
            if not self.number:
                work()
            self._at_once = False
        except Stopped:
            pass
        except Exception:
            if not self.number:  # else a library has turned `Stopped` into something else
                raise
        self._at_once = False

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.number:
            os._exit(128 + counts_as(number))
        self.number = counts_as(number)
        if self._at_once:
            raise Stopped(self.number)

    def agreed(self, processes: Processes) -> int:
        """The signal that any process received, or 0, so that all stop at the same step. No device is waited for."""
        if processes.num_processes == 1:
            return self.number
        return all_reduce_max(self.number)

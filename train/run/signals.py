"""Stopping on a signal: every process stops after the same step, with the state saved."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from ldm.io.stopping import counts_as, handling

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

    @contextmanager
    def watching(self) -> Iterator["StopSignal"]:
        """Handle the signals inside the block, and restore the former handlers afterwards."""
        with handling(self._note):
            yield self

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.number:
            os._exit(128 + counts_as(number))
        self.number = counts_as(number)

    def agreed(self, processes: Processes) -> int:
        """The signal that any process received, or 0, so that all stop at the same step. No device is waited for."""
        if processes.num_processes == 1:
            return self.number
        return all_reduce_max(self.number)

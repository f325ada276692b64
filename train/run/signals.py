"""Stopping on SIGINT and SIGTERM: every process stops after the same step, with the state saved."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from ..loop.processes import Processes, all_reduce_max


class Interrupted(Exception):
    """SIGINT or SIGTERM arrived; the run was saved."""

    def __init__(self, signal_number: int, step: int) -> None:
        self.exit_code = 128 + signal_number
        super().__init__(f"stopped and saved at step {step}; run the same command to resume")


@dataclass
class StopSignal:
    """Remembers the first SIGINT or SIGTERM; a second one ends the process at once."""

    number: int = 0

    @contextmanager
    def watching(self) -> Iterator["StopSignal"]:
        """Handle both signals inside the block, and restore the former handlers afterwards."""
        former = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield self
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.number:
            os._exit(128 + number)
        self.number = number

    def agreed(self, processes: Processes) -> int:
        """The signal that any process received, or 0, so that all stop at the same step. No device is waited for."""
        if processes.num_processes == 1:
            return self.number
        return all_reduce_max(self.number)

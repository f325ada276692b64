"""Stopping on SIGINT and SIGTERM: every process ends at the same step, with the state saved."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from accelerate import Accelerator

from ..loop.sharding import all_reduce_max


class Interrupted(Exception):
    """SIGINT or SIGTERM arrived; the run was saved."""

    def __init__(self, signal_number: int, step: int) -> None:
        self.exit_code = 128 + signal_number
        super().__init__(f"stopped and saved at step {step}; run the same command to go on")


@dataclass
class StopSignal:
    """Remembers the first SIGINT or SIGTERM; a second one ends the process at once."""

    number: int = 0

    @contextmanager
    def watching(self) -> Iterator["StopSignal"]:
        """Handle both signals inside the block, and put the former handlers back after it."""
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

    def agreed(self, accelerator: Accelerator) -> int:
        """The signal that any rank received, or 0: all ranks stop at the same step. No device is waited for."""
        if accelerator.num_processes == 1:
            return self.number
        return all_reduce_max(self.number)

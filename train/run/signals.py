"""Stopping on a signal: every process stops after the same step, with the state saved."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from ldm.io.stopping import Stopped, counts_as, handling

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

    def cut_short(self, work: Callable[[], None]) -> None:
        """Do work that ends at its next `raise_if_stopping` once a signal has arrived."""
        global _cutting_short
        _cutting_short = self
        try:
            work()
        except Stopped:
            pass
        finally:
            _cutting_short = None

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.number:
            os._exit(128 + counts_as(number))
        self.number = counts_as(number)

    def agreed(self, processes: Processes) -> int:
        """The signal that any process received, or 0, so that all stop at the same step. No device is waited for."""
        if processes.num_processes == 1:
            return self.number
        return all_reduce_max(self.number)


_cutting_short: StopSignal | None = None


def raise_if_stopping() -> None:
    """A point at which a preview may end early.

    The signal's handler cannot raise: it might interrupt the exchange of the weights with their average, half-way.

    Raises:
        Stopped: a signal has arrived, and the work at hand may be cut short.
    """
    if _cutting_short is not None and _cutting_short.number:
        raise Stopped(_cutting_short.number)

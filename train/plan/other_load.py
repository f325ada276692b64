"""How busy other programs keep the machine's cores while something is measured."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate import Accelerator


@dataclass
class OtherLoad:
    """The processor time of other programs during a measurement; on systems other than Linux it stays 0.

    Attributes:
        num_cores: of the machine.
        cores_used: how many of them other programs used on average, set when the measurement is over.
    """

    num_cores: int = field(default_factory=lambda: os.cpu_count() or 1)
    cores_used: float = 0.0

    @contextmanager
    def measuring(self, accelerator: Accelerator) -> Iterator[None]:
        """Measure inside the block, which every process must enter. Only the run's own processes are not counted."""
        begin, busy, own = time.perf_counter(), busy_sec(), time.process_time()
        yield
        seconds, busy, own = time.perf_counter() - begin, busy_sec() - busy, time.process_time() - own
        all_own = accelerator.reduce(torch.tensor(own, device=accelerator.device), "sum")
        self.note(seconds, busy, float(all_own))

    def note(self, seconds: float, busy: float, own: float) -> None:
        """Compute `cores_used` from seconds passed, core seconds of all programs, and core seconds of this run."""
        self.cores_used = min(float(self.num_cores), max(0.0, busy - own) / seconds)

    @property
    def matters(self) -> bool:
        """Whether other programs took so much of the machine that what was measured is too slow."""
        return self.cores_used > 0.1 * self.num_cores

    def __str__(self) -> str:
        return f"other programs used {self.cores_used:.1f} of {self.num_cores} cores during the measurement"


def busy_sec() -> float:
    """Seconds that all cores together have worked since the system started, from /proc/stat; 0 if there is none.

    Time that a hypervisor has given to other machines ("steal") counts too.
    """
    with suppress(OSError):
        ticks = [int(each) for each in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
        user, nice, system, _, _, irq, softirq, steal = ticks
        return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
    return 0.0

"""Run two or more commands by turns and compare them, counting only samples that nothing else disturbed."""

import os
import platform
import resource
import statistics
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

MAX_FOREIGN_CORES = 0.25
"""A sample is clean when other programs used less than this many cores meanwhile."""
MIN_CLEAN = 5
"""With fewer clean samples a side there is no verdict."""


@dataclass(frozen=True)
class Sample:
    """One run of one side."""

    wall_sec: float
    own_cpu_sec: float
    foreign_cores: float

    @property
    def clean(self) -> bool:
        return self.foreign_cores < MAX_FOREIGN_CORES


@dataclass
class Side:
    """A command and its samples."""

    command: Sequence[str]
    samples: list[Sample] = field(default_factory=list)

    @property
    def clean(self) -> list[float]:
        return [sample.wall_sec for sample in self.samples if sample.clean]

    @property
    def median_sec(self) -> float:
        """Of the clean samples."""
        return statistics.median(self.clean)


def busy_cpu_sec() -> float:
    """Seconds of work that all cores have done since the machine started, from /proc/stat."""
    fields = [int(value) for value in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    idle = fields[3] + fields[4]
    return (sum(fields) - idle) / os.sysconf("SC_CLK_TCK")


def run_once(command: Sequence[str]) -> Sample:
    """Run a command to its end, and see how much other programs worked meanwhile.

    Raises:
        RuntimeError: the command failed.
    """
    busy, own, start = busy_cpu_sec(), _children_cpu_sec(), time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True)
    wall = time.perf_counter() - start
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr}")
    own = _children_cpu_sec() - own
    return Sample(wall, own, max(0.0, busy_cpu_sec() - busy - own) / wall)


def _children_cpu_sec() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def run_by_turns(commands: Mapping[str, Sequence[str]], rounds: int) -> dict[str, Side]:
    """Each command once a round, after one round that only warms the disk's cache."""
    sides = {name: Side(command) for name, command in commands.items()}
    for number in range(rounds + 1):
        for side in sides.values():
            sample = run_once(side.command)
            if number:
                side.samples.append(sample)
    return sides


def compare(sides: Mapping[str, Side], ours: str, theirs: str) -> dict[str, Any]:
    """The ratio theirs / ours of the medians of clean samples, above 1 where ours is faster; None without a verdict."""
    clean = {name: len(sides[name].clean) for name in (ours, theirs)}
    enough = min(clean.values()) >= MIN_CLEAN
    ratio = sides[theirs].median_sec / sides[ours].median_sec if enough else None
    return {"ours": ours, "theirs": theirs, "ratio": ratio, "num_clean": clean}


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    import diffusers
    import torch

    return {
        "cpu_cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
    }


def samples_of(sides: Mapping[str, Side]) -> dict[str, list[dict[str, float]]]:
    """Every sample, clean or not, for the record."""
    return {name: [asdict(sample) for sample in side.samples] for name, side in sides.items()}

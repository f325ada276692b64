"""Run commands alternately, each from start to finish."""

import os
import resource
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .samples import Sample, busy_cpu_sec, recorded


@dataclass
class Side:
    """A command and its samples."""

    command: Sequence[str]
    samples: list[Sample] = field(default_factory=list)


def run_once(command: Sequence[str]) -> Sample:
    """Run a command and measure its time and how much other programs worked.

    Raises:
        RuntimeError: the command failed.
    """
    busy, own, start = busy_cpu_sec(), _children_cpu_sec(), time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, env=_as_installed())
    wall = time.perf_counter() - start
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr}")
    own = _children_cpu_sec() - own
    return Sample(wall, own, max(0.0, busy_cpu_sec() - busy - own) / wall)


def _as_installed() -> dict[str, str]:
    """The environment, but with Python's bytecode cache enabled, as for installed packages."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def _children_cpu_sec() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def run_by_turns(commands: Mapping[str, Sequence[str]], rounds: int) -> dict[str, Side]:
    """Run each command once per round, after a first round that only warms the disk cache."""
    sides = {name: Side(command) for name, command in commands.items()}
    for number in range(rounds + 1):
        for side in sides.values():
            sample = run_once(side.command)
            if number:
                side.samples.append(sample)
    return sides


def samples_of(sides: Mapping[str, Side]) -> dict[str, list[dict[str, Any]]]:
    """All samples, clean or not, ready for JSON."""
    return {name: recorded(side.samples) for name, side in sides.items()}

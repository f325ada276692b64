"""Commands run by turns, each from its start to its end."""

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
    """Run a command to its end, and see how much other programs worked meanwhile.

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
    """The environment, such that Python keeps what it has compiled, as an installation has it for every package."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


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


def samples_of(sides: Mapping[str, Side]) -> dict[str, list[dict[str, Any]]]:
    """Every sample, clean or not, for the record."""
    return {name: recorded(side.samples) for name, side in sides.items()}

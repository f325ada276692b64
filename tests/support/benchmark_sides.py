"""Sides for tests of the turns. They import very little, because each runs in a separate process."""

import os
import sys
from typing import Any

import numpy as np


def make_counting(start: int) -> Any:
    """A side whose output counts its turns and names its process; it writes to stderr when it is made."""
    print("made", file=sys.stderr)
    done = [start]

    def work(warming_up: bool) -> tuple[Any, dict[str, float]]:
        done.append(done[-1] + (100 if warming_up else 1))
        return np.array([done[-1], os.getpid()], np.float64), {"detail_sec": 0.5}

    return work


def make_two() -> Any:
    """A process with two works."""
    return {"once": make_counting(0), "twice": make_counting(1000)}


def fail(turns: Any) -> None:
    print("no such model", file=sys.stderr)
    turns.next()
    raise ValueError("in its first turn")


def say_threads(turns: Any) -> None:
    turns.next()
    turns.next(np.array([float(os.environ["OMP_NUM_THREADS"]), float(os.environ["RANK"])]))
    turns.next()

"""Sides for tests of the turns: they import next to nothing, for each is started in a process of its own."""

import os
import sys
from typing import Any

import numpy as np


def make_counting(start: int) -> Any:
    """A side that answers with how often it worked, and says who it is on its standard error."""
    print("made", file=sys.stderr)
    done = [start]

    def work(warming_up: bool) -> tuple[Any, dict[str, float]]:
        done.append(done[-1] + (100 if warming_up else 1))
        return np.array([done[-1], os.getpid()], np.float64), {"detail_sec": 0.5}

    return work


def make_two() -> Any:
    """Two works of one process."""
    return {"once": make_counting(0), "twice": make_counting(1000)}


def fail(turns: Any) -> None:
    print("no such model", file=sys.stderr)
    turns.next()
    raise ValueError("in its first turn")


def say_threads(turns: Any) -> None:
    turns.next()
    turns.next(np.array([float(os.environ["OMP_NUM_THREADS"]), float(os.environ["RANK"])]))
    turns.next()

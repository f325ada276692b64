"""The benchmarks. Each returns a dictionary with rows; `scripts/benchmark.py` runs them by name."""

import sys
from importlib import import_module
from pathlib import Path
from typing import Any

sys.path.append(
    str(Path(__file__).parents[2])
)  # for `train` in a checkout, and for `ldm` if it is not installed


def training(module: str) -> Any:
    """A module of the training programs, whose package has different names in a checkout and installed."""
    from ldm.cli.programs import find_home

    return import_module(f"{find_home().package}.{module}")

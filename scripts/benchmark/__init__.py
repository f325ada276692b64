"""The benchmarks: each gives a dictionary of rows; `scripts/benchmark.py` runs them by name."""

import sys
from importlib import import_module
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[2]))  # `train` in a checkout, and `ldm` where it is not installed


def training(module: str) -> Any:
    """A module of the training programs, which an installation names otherwise than a checkout."""
    from ldm.cli.programs import find_home

    return import_module(f"{find_home().package}.{module}")

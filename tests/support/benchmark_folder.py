"""The modules below scripts/, which belong to no package, as tests and worker processes import them."""

import sys
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def script_module(name: str) -> Any:
    """The module `scripts/NAME.py`, dots for folders, under the name it has when a script of scripts/ imports it."""
    folder = str(ROOT / "scripts")
    if folder not in sys.path:
        sys.path.append(folder)
    return import_module(name)


def benchmark(name: str) -> Any:
    """The module `scripts/benchmark/NAME.py`."""
    return script_module(f"benchmark.{name}")

"""Import the modules of scripts/benchmark/, which are not installed, in tests and worker processes."""

import sys
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def benchmark(name: str) -> Any:
    """The module `scripts/benchmark/NAME.py`, under the same name as when scripts/benchmark.py runs it."""
    folder = str(ROOT / "scripts")
    if folder not in sys.path:
        sys.path.append(folder)
    return import_module(f"benchmark.{name}")

"""The modules of scripts/benchmark/, which is no part of an installation, as tests and worker processes import them."""

import sys
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def benchmark(name: str) -> Any:
    """The module `scripts/benchmark/NAME.py`, under the name that it has where scripts/benchmark.py runs it."""
    folder = str(ROOT / "scripts")
    if folder not in sys.path:
        sys.path.append(folder)
    return import_module(f"benchmark.{name}")

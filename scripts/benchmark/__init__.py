"""The benchmarks: each gives a dictionary of rows; `scripts/benchmark.py` runs them by name."""

import sys
from pathlib import Path

sys.path.append(
    str(Path(__file__).parents[2])
)  # `train`, which an installation names otherwise, and `ldm` without one

"""Measure: python scripts/benchmark.py generate|train|...|all [--quick] [--output docs/benchmarks/generate.json]

`python scripts/benchmark.py draw docs/benchmarks/*.json --output docs/images/benchmarks.png` draws what was measured
and prints its table; `python scripts/benchmark.py scaling-page` writes docs/scaling.md.
"""

import sys

from benchmark.command import main  # the folder beside this file

if __name__ == "__main__":
    sys.exit(main())

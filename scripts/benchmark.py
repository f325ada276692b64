"""Run benchmarks: python scripts/benchmark.py generate|train|...|all [--quick] [--output docs/benchmarks/generate.json]

`python scripts/benchmark.py draw docs/benchmarks/*.json --output docs/images/benchmarks.png` draws the results
and prints their table; `speed-page` writes that table into docs/benchmarks/README.md, `scaling-page` docs/scaling.md.
"""

import sys

from benchmark.command import main  # the package beside this file

if __name__ == "__main__":
    sys.exit(main())

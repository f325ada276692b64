"""How often the 95 % intervals of `ldm evaluate` hold the true value, on distributions whose distances are known.

    python scripts/coverage.py docs/benchmarks/evaluation-coverage.json --minutes 10

Every distribution is known exactly, so the true distances are computed, not estimated. The trials are run in rounds
over all cases. A second call adds to the trials of the first, up to `--trials`.
"""

import argparse
from pathlib import Path

import torch

from ldm.demos.coverage_trials import METRICS, SIZES, markdown, run_trials


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--metrics", nargs="+", default=list(METRICS))
    parser.add_argument("--sizes", nargs="+", type=int, default=list(SIZES))
    options = parser.parse_args()
    torch.set_num_threads(1)
    made = run_trials(options.output, options.trials, options.minutes, options.metrics, options.sizes)
    print(markdown(made["rows"]))


if __name__ == "__main__":
    main()

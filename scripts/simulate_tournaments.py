"""How often `ldm compare` names the true best of simulated candidates, and how often it names another.

    python scripts/simulate_tournaments.py docs/benchmarks/evaluation-tournaments.json --tournaments 200

Prints the table of docs/benchmarks/evaluation.md.
"""

import argparse
from pathlib import Path

import torch

from ldm.demos.simulated_tournaments import markdown, simulate
from ldm.io.files import write_json


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--tournaments", type=int, default=200)
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = simulate(options.tournaments)
    write_json(options.output, found)
    print(markdown(found))


if __name__ == "__main__":
    main()

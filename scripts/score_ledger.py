"""How often `ldm ledger` finds captions that were swapped on purpose.

python scripts/score_ledger.py plant DATA DEST --share 0.05     # a copy of a folder with some captions swapped
ldm train CONFIG data.path=DEST ...
ldm ledger RUN --output ledger
python scripts/score_ledger.py score DEST ledger/ledger.json
"""

import argparse
import json
from pathlib import Path

from ldm.evaluation.planted_captions import plant, score_planted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    planting = commands.add_parser("plant")
    planting.add_argument("data", type=Path)
    planting.add_argument("dest", type=Path)
    planting.add_argument("--share", type=float, default=0.05)
    planting.add_argument("--seed", type=int, default=0)
    scoring = commands.add_parser("score")
    scoring.add_argument("dest", type=Path)
    scoring.add_argument("ledger", type=Path)
    options = parser.parse_args()
    if options.command == "plant":
        plant(options.data, options.dest, options.share, options.seed)
    else:
        print(json.dumps(score_planted(options.dest, options.ledger), indent=2))


if __name__ == "__main__":
    main()

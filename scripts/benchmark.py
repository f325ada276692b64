"""Measure: python scripts/benchmark.py startup|cache [--rounds 9] [--output docs/benchmarks/startup.json]"""

import argparse
import json
from pathlib import Path

from benchmark.cache import cache  # the folder beside this file
from benchmark.startup import startup

BENCHMARKS = {"cache": cache, "startup": startup}


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Ratios of two sides, run by turns; without 5 clean samples no verdict."
    )
    parser.add_argument("benchmark", choices=BENCHMARKS)
    parser.add_argument("--rounds", type=int, default=9, help="samples a side")
    parser.add_argument("--output", type=Path, help="keep the result as JSON")
    options = parser.parse_args()
    result = BENCHMARKS[options.benchmark](options.rounds)
    if options.output:
        options.output.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps({key: value for key, value in result.items() if key != "samples"}, indent=2))


if __name__ == "__main__":
    main()

"""Measure: python scripts/benchmark.py generate|train|...|all [--quick] [--output docs/benchmarks/generate.json]

`python scripts/benchmark.py draw docs/benchmarks/*.json --output docs/images/benchmarks.png` draws what was measured
and prints its table; `python scripts/benchmark.py scaling-page` writes docs/scaling.md.
"""

import argparse
from pathlib import Path

from benchmark.samples import Setting  # the folder beside this file
from benchmark.suite import BENCHMARKS, measure, read_results

ROOT = Path(__file__).parents[1]
WORKS = (*BENCHMARKS, "all", "draw", "scaling-page")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Ratios of two sides, run by turns; without 5 clean samples no verdict."
    )
    parser.add_argument("work", choices=WORKS, metavar="WORK", help=", ".join(WORKS))
    parser.add_argument("results", nargs="*", type=Path, help="JSON files, for draw")
    parser.add_argument("--rounds", type=int, help="samples a side (9; 5 with --quick)")
    scale = parser.add_mutually_exclusive_group()
    for name, meaning in (("quick", "fewer steps and samples"), ("smallest", "only see that it runs")):
        scale.add_argument(f"--{name}", dest="scale", action="store_const", const=name, help=meaning)
    parser.set_defaults(scale="full")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--script", type=Path, help="diffusers' published train_text_to_image.py, for train")
    parser.add_argument("--output", type=Path, help="keep the result as JSON, the chart as PNG or SVG")
    return parser.parse_args()


def main() -> None:
    options = parse()
    if options.work == "draw":
        from benchmark.chart import draw

        print(draw(read_results(options.results), options.output))
    elif options.work == "scaling-page":
        from benchmark.scaling_page import write_page

        write_page(ROOT / "docs/benchmarks/scaling-inputs.json", ROOT / "docs/scaling.md")
    else:
        rounds = options.rounds or (9 if options.scale == "full" else 5)
        setting = Setting(rounds, options.scale, options.device, options.script)
        print(measure(options.work, setting, options.output))


if __name__ == "__main__":
    main()

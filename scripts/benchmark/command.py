"""The command line of the benchmarks: `python scripts/benchmark.py`; `ldm benchmark` offers part of it."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ldm.errors import UserError

from .samples import Setting
from .suite import BENCHMARKS, measure, read_results

ROOT = Path(__file__).parents[2]
WORKS = (*BENCHMARKS, "all", "engine-memory", "export-memory", "draw", "speed-page", "scaling-page")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Ratios of two sides that take turns; there is no verdict without 5 clean samples."
    )
    parser.add_argument("work", choices=WORKS, metavar="WORK", help=", ".join(WORKS))
    parser.add_argument("results", nargs="*", type=Path, help="JSON files, for draw")
    parser.add_argument("--rounds", type=int, help="samples per side (9; 5 with --quick)")
    scale = parser.add_mutually_exclusive_group()
    for name, meaning in (("quick", "fewer steps and samples"), ("smallest", "only check that it runs")):
        scale.add_argument(f"--{name}", dest="scale", action="store_const", const=name, help=meaning)
    parser.set_defaults(scale="full")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--model", help="for generate: only this model, a folder, a run or a Hub id")
    parser.add_argument("--case", help="for generate: only cases whose name contains this, such as SD1.5")
    parser.add_argument(
        "--side", help="for generate: only this side beside diffusers, such as 'ldm fast preset'"
    )
    parser.add_argument("--steps", type=int, help="for generate: the number of sampling steps")
    parser.add_argument("--script", type=Path, help="for train: diffusers' published train_text_to_image.py")
    parser.add_argument("--output", type=Path, help="save the result as JSON, or the chart as PNG or SVG")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a benchmark, or draw results; returns the exit code."""
    options = parse(arguments)
    try:
        _run(options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _run(options: argparse.Namespace) -> None:
    if options.work == "draw":
        from .chart import draw

        print(draw(read_results(options.results), options.output))
    elif options.work == "speed-page":
        from .speed_page import write_table

        write_table(sorted((ROOT / "docs/benchmarks").rglob("*.json")), ROOT / "docs/benchmarks/README.md")
    elif options.work == "engine-memory":
        from .engine_memory import engine_memory

        print(engine_memory(options.scale, options.output))
    elif options.work == "export-memory":
        from .export_memory import export_memory

        print(export_memory(options.scale, options.output))
    elif options.work == "scaling-page":
        from .scaling_page import write_page

        write_page(ROOT / "docs/benchmarks/scaling.json", ROOT / "docs/scaling.md")
    else:
        if options.script and not options.script.is_file():
            raise UserError(
                f"no file {options.script}", "give diffusers' train_text_to_image.py, or omit --script"
            )
        if options.steps is not None and options.steps < 1:
            raise UserError(f"--steps {options.steps}", "give 1 or more")
        rounds = options.rounds or (9 if options.scale == "full" else 5)
        setting = Setting(
            rounds,
            options.scale,
            options.device,
            options.script,
            options.model,
            case=options.case or "",
            side=options.side or "",
            num_steps=options.steps,
        )
        print(measure(options.work, setting, options.output))

"""Compare training objectives on drawn scenes: python scripts/compare_objectives.py --output docs/benchmarks

It needs the first three steps of scripts/make_shapes_model.sh. Run it again and it goes on.
"""

import argparse
import subprocess
import sys
from itertools import product
from pathlib import Path

from ldm.demos.shapes_drawing import write_shapes
from ldm.evaluation import objectives as compared
from ldm.io.files import write_bytes, write_json


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train and score each objective with several seeds.")
    parser.add_argument("--config", default="shapes/compare", help="the recipe")
    parser.add_argument("--runs", type=Path, default=Path("runs/objectives"), help="a folder")
    parser.add_argument("--output", type=Path, required=True, help="folder for objectives.json and .md")
    parser.add_argument("--num-seeds", type=int, default=3, help="runs per objective (3)")
    parser.add_argument("--num-scenes", type=int, default=500, help="scenes of each kind to judge (500)")
    return parser.parse_args()


def make(options: argparse.Namespace, objective: str, seed: int) -> None:
    """Train one run and score it, as far as that was not done before."""
    run_dir = options.runs / compared.run_name(objective, seed)
    python = [sys.executable]
    subprocess.run(
        [*python, *compared.training_command(options.config, objective, seed, run_dir)], check=True
    )
    if not (run_dir / "score").exists():
        subprocess.run([*python, *compared.score_command(run_dir, options.num_scenes)], check=True)
    if not (bits := run_dir / "likelihood.json").exists():
        command = [*python, *compared.likelihood_command(run_dir, options.runs / "unseen")]
        write_bytes(bits, subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def main() -> None:
    options = parse()
    if not (unseen := options.runs / "unseen").exists():
        write_shapes(unseen, num_images=100, size_px=32, seed=1, plain=True)
    for seed, objective in product(range(options.num_seeds), compared.OBJECTIVES):
        try:
            make(options, objective, seed)
        except subprocess.CalledProcessError as error:  # the command said why
            sys.exit(error.returncode)
        table = compared.collect(*compared.read_runs(options.runs))
        write_json(options.output / "objectives.json", table)
        write_bytes(options.output / "objectives.md", compared.markdown_table(table).encode())


if __name__ == "__main__":
    main()

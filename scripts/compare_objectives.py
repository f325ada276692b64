"""Compare training objectives on drawn scenes: python scripts/compare_objectives.py --output docs/benchmarks"""

import argparse
import subprocess
import sys
from pathlib import Path

from ldm.evaluation.objectives import OBJECTIVES, collect, markdown_table, training_command
from ldm.io.files import write_bytes, write_json
from ldm.io.json_files import read_json


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train and score each objective with several seeds.")
    parser.add_argument("--config", default="shapes/compare", help="the recipe (shapes/compare)")
    parser.add_argument(
        "--runs", type=Path, default=Path("runs/objectives"), help="their folder (runs/objectives)"
    )
    parser.add_argument("--output", type=Path, required=True, help="folder for objectives.json and .md")
    parser.add_argument("--num-seeds", type=int, default=3, help="runs per objective (3)")
    parser.add_argument("--num-scenes", type=int, default=500, help="scenes of each kind to judge (500)")
    return parser.parse_args()


def main() -> int:
    options = parse()
    for name in OBJECTIVES:
        for seed in range(options.num_seeds):
            run_dir = options.runs / f"{name}-{seed}"
            command = training_command(options.config, name, seed, run_dir)
            if subprocess.run([sys.executable, "-m", "ldm", *command]).returncode:
                return 1
            score = ["--model", str(run_dir), "--output", str(run_dir / "score")]
            scenes = ["--num-scenes", str(options.num_scenes), "--plain"]  # like the recipe's data
            if not (run_dir / "score").exists():
                subprocess.run([sys.executable, "scripts/score_shapes.py", *score, *scenes], check=True)
    reports = {p.parent.name: read_json(p / "report.json") for p in sorted(options.runs.glob("*/score"))}
    table = collect(reports)
    write_json(options.output / "objectives.json", table)
    write_bytes(options.output / "objectives.md", markdown_table(table).encode())
    print(markdown_table(table))
    return 0


if __name__ == "__main__":
    sys.exit(main())

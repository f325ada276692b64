"""Score a shapes model with the judge: python scripts/score_shapes.py --model runs/shapes/denoiser --output DIR"""

import argparse
import sys
from pathlib import Path

from ldm.demos.shapes_score import score_shapes
from ldm.errors import UserError
from ldm.pipeline.pipeline import load_pipeline
from ldm.pipeline.settings import PRESETS


def main() -> int:
    parser = argparse.ArgumentParser(
        description="The share of images that have each attribute of the prompt right."
    )
    parser.add_argument("--model", required=True, help="a run or a model folder trained on drawn shapes")
    parser.add_argument(
        "--output", type=Path, required=True, help="a new folder for report.json and the grids"
    )
    parser.add_argument("--num-scenes", type=int, default=500, help="scenes of each kind, seen and held out")
    parser.add_argument("--plain", action="store_true", help="only one or two large things on white")
    parser.add_argument("--preset", choices=PRESETS, help="a preset of `ldm generate`")
    parser.add_argument("--guidance-scale", type=float, help="instead of the model's default")
    parser.add_argument("--guidance-interval", type=float, nargs=2, help="START END, as in `ldm generate`")
    options = parser.parse_args()
    named = ("guidance_scale", "guidance_interval")
    given = {name: value for name in named if (value := getattr(options, name)) is not None}
    try:
        report = score_shapes(
            load_pipeline(options.model),
            options.output,
            num_scenes=options.num_scenes,
            plain=options.plain,
            settings={**PRESETS.get(options.preset, {}), **given},
            on_progress=lambda done: print(
                f"\r{done}/{options.num_scenes}", end="", file=sys.stderr, flush=True
            ),
        )
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for kind in ("seen", "held_out"):
        for name, share in report[kind].items():
            low, high = share["low"], share["high"]
            print(
                f"{kind:8}  {name:10}  {share['share']:.3f} [{low:.3f}, {high:.3f}] of {share['num_judged']}"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())

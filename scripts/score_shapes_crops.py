"""Judge whether a model does what it is told of size and crop: see scripts/prepare_shapes_crops.py."""

import argparse
import json
import sys
from pathlib import Path

from ldm.demos.shapes_crops_score import score_crops
from ldm.errors import UserError
from ldm.pipeline.pipeline import load_pipeline


def main() -> int:
    parser = argparse.ArgumentParser(description="The share of images that are as asked for, with intervals.")
    parser.add_argument("told", help="the run or model that was told size and crop")
    parser.add_argument("untold", help="the one that has seen the same crops and was told nothing")
    parser.add_argument(
        "--output", type=Path, required=True, help="a new folder for report.json and the grids"
    )
    parser.add_argument("--num-seeds", type=int, default=5, help="images of each of the 40 prompts (5)")
    parser.add_argument("--num-inference-steps", type=int, default=20, help="sampling steps (20)")
    parser.add_argument("--guidance-scale", type=float, default=2.0, help="guidance (2)")
    options = parser.parse_args()
    settings = {name: getattr(options, name) for name in ("num_inference_steps", "guidance_scale")}
    try:
        told, untold = load_pipeline(options.told), load_pipeline(options.untold)
        report = score_crops(
            told, untold, options.output, num_seeds=options.num_seeds, settings=settings, on_progress=_say
        )
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(json.dumps(report, indent=1))
    return 0


def _say(name: str) -> None:
    print(name, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())

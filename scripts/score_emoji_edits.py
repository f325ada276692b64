"""Score edits of emoji scenes: scripts/score_emoji_edits.py --model MODEL --data data/emoji-composed-64 --output DIR"""

import argparse
import sys
from pathlib import Path

from ldm.demos.emoji_edits_score import score_emoji_edits
from ldm.demos.shapes_tasks_report import lines_of
from ldm.errors import UserError
from ldm.pipeline.pipeline import load_pipeline


def main() -> int:
    parser = argparse.ArgumentParser(
        description="The share of emoji scenes that a model edits as it is told, with nothing else changed."
    )
    parser.add_argument("--model", required=True, help="a run or a model folder for editing")
    parser.add_argument("--data", type=Path, required=True, help="the composed dataset, for its objects")
    parser.add_argument(
        "--output", type=Path, required=True, help="a new folder for the report and the sheets"
    )
    parser.add_argument("--num-cases", type=int, default=200, help="of each part, held out and seen (200)")
    parser.add_argument(
        "--limits-only", action="store_true", help="only what needs no denoiser: the autoencoder's round trip"
    )
    parser.add_argument("--guidance-scale", type=float, help="instead of the model's default")
    parser.add_argument("--image-guidance-scale", type=float, help="instead of the default")
    options = parser.parse_args()
    named = ("guidance_scale", "image_guidance_scale")
    try:
        report = score_emoji_edits(
            load_pipeline(options.model),
            options.data,
            options.output,
            num_cases=options.num_cases,
            limits_only=options.limits_only,
            settings={name: value for name in named if (value := getattr(options, name)) is not None},
            on_progress=lambda part, done: print(f"\r{part} {done}   ", end="", file=sys.stderr, flush=True),
        )
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(file=sys.stderr)
    print("\n".join(lines_of(report)))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Measure enlarged emoji: scripts/score_emoji_tiles.py --model MODEL --data data/emoji-all-256 --output DIR"""

import argparse
import sys
from pathlib import Path

from ldm.demos.emoji_tiles import enlarging_cases, read_emoji
from ldm.demos.shapes_quality_score import measure_cases
from ldm.demos.shapes_tasks_report import lines_of
from ldm.errors import UserError
from ldm.pipeline.pipeline import load_pipeline

COMMAND = "python scripts/score_emoji_tiles.py --model MODEL --data data/emoji-all-256 --output DIR"


def main() -> int:
    parser = argparse.ArgumentParser(
        description="PSNR and SSIM of emoji that a model enlarges, beside bicubic enlargement."
    )
    parser.add_argument("--model", required=True, help="a run or a model folder for enlarging")
    parser.add_argument(
        "--data", type=Path, required=True, help="emoji of 256 px, as for prepare_emoji_tiles.py"
    )
    parser.add_argument(
        "--output", type=Path, required=True, help="a new folder for the report and the sheets"
    )
    parser.add_argument("--num-cases", type=int, default=60, help="of each part, held out and seen (60)")
    parser.add_argument("--limits-only", action="store_true", help="only what needs no denoiser")
    options = parser.parse_args()
    try:
        pipeline = load_pipeline(options.model)
        emoji, factor = read_emoji(options.data), pipeline.autoencoder.pixels_per_latent
        report = measure_cases(
            pipeline,
            "upscale",
            {part: enlarging_cases(emoji, part, options.num_cases, factor) for part in ("held_out", "seen")},
            options.output,
            command=COMMAND,
            limits_only=options.limits_only,
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

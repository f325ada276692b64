"""Measure enlarged emoji: scripts/score_emoji_tiles.py --model MODEL --data data/emoji-all-256 --output DIR"""

import argparse
import sys
from pathlib import Path
from typing import Any

from ldm.demos.emoji_tiles import enlarging_cases, read_emoji
from ldm.demos.shapes_quality_score import measure_cases
from ldm.demos.shapes_tasks_report import run_and_print
from ldm.demos.task_cases import OnProgress
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

    def measure(show: OnProgress) -> dict[str, Any]:
        pipeline = load_pipeline(options.model)
        emoji, factor = read_emoji(options.data), pipeline.autoencoder.pixels_per_latent
        return measure_cases(
            pipeline,
            "upscale",
            {part: enlarging_cases(emoji, part, options.num_cases, factor) for part in ("held_out", "seen")},
            options.output,
            command=COMMAND,
            limits_only=options.limits_only,
            on_progress=show,
        )

    return run_and_print(measure)


if __name__ == "__main__":
    sys.exit(main())

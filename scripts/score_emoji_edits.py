"""Score edits of emoji scenes: scripts/score_emoji_edits.py --model MODEL --data data/emoji-composed-64 --output DIR"""

import argparse
import sys
from pathlib import Path
from typing import Any

from ldm.demos.emoji_edits_score import score_emoji_edits
from ldm.demos.shapes_tasks_report import run_and_print
from ldm.demos.task_cases import OnProgress
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

    def measure(show: OnProgress) -> dict[str, Any]:
        return score_emoji_edits(
            load_pipeline(options.model),
            options.data,
            options.output,
            num_cases=options.num_cases,
            limits_only=options.limits_only,
            settings={name: value for name in named if (value := getattr(options, name)) is not None},
            on_progress=show,
        )

    return run_and_print(measure)


if __name__ == "__main__":
    sys.exit(main())

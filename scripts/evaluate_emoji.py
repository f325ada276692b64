"""Evaluate the emoji model: python scripts/evaluate_emoji.py --model emoji --data data/emoji-64 --output DIR"""

import argparse
import sys
from pathlib import Path

from ldm.data.sources.image_folder import read_folder
from ldm.demos.emoji_score import evaluate_emoji
from ldm.errors import UserError
from ldm.generation.prompts import read_prompts
from ldm.pipeline.pipeline import load_pipeline
from ldm.pipeline.settings import PRESETS


def main() -> int:
    parser = argparse.ArgumentParser(description="Recall of the training images, and two grids to look at.")
    parser.add_argument("--model", default="emoji", help="the embedded model, a folder or a run")
    parser.add_argument("--data", type=Path, required=True, help="the data it was trained on")
    parser.add_argument(
        "--unseen", type=Path, default=Path("configs/emoji/unseen.txt"), help="prompts for a grid"
    )
    parser.add_argument(
        "--output", type=Path, required=True, help="a new folder for report.json and the grids"
    )
    parser.add_argument("--num-captions", type=int, default=256, help="captions to measure recall on (256)")
    parser.add_argument("--preset", choices=PRESETS, help="a preset of `ldm generate`")
    options = parser.parse_args()
    try:
        unseen = [line.prompt for line in read_prompts(options.unseen)]
        report = evaluate_emoji(
            load_pipeline(options.model),
            read_folder(options.data),
            unseen,
            options.output,
            num_captions=options.num_captions,
            settings=PRESETS.get(options.preset, {}),
            on_progress=lambda n: print(f"\r{n}/{options.num_captions}", end="", file=sys.stderr, flush=True),
        )
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(report["recall"])
    return 0


if __name__ == "__main__":
    sys.exit(main())

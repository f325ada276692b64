"""Score composed emoji: python scripts/score_composed_emoji.py --data data/emoji-composed-64 --output DIR"""

import argparse
import sys
from pathlib import Path

from ldm.demos.emoji_composed_score import score_composed_emoji
from ldm.demos.emoji_scenes import KINDS
from ldm.errors import UserError
from ldm.evaluation.metrics import share_text
from ldm.pipeline.pipeline import load_pipeline
from ldm.pipeline.settings import PRESETS


def main() -> int:
    parser = argparse.ArgumentParser(
        description="The share of held-out and seen scenes that a model draws right, with the judge's ceiling and null."
    )
    parser.add_argument("--model", default="emoji", help="the embedded model, a folder or a run")
    parser.add_argument("--data", type=Path, required=True, help="the composed dataset")
    parser.add_argument(
        "--output", type=Path, required=True, help="a new folder for report.json and the grids"
    )
    parser.add_argument(
        "--num-held-out", type=int, default=120, help="held-out combinations of each kind (120)"
    )
    parser.add_argument("--num-seen", type=int, default=40, help="training scenes of each kind (40)")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS, help="kinds of scenes (all)")
    parser.add_argument("--preset", choices=PRESETS, help="a preset of `ldm generate`")
    options = parser.parse_args()
    try:
        report = score_composed_emoji(
            load_pipeline(options.model),
            options.data,
            options.output,
            num_held_out=options.num_held_out,
            num_seen=options.num_seen,
            kinds=options.kinds,
            settings=PRESETS.get(options.preset, {}),
            on_progress=lambda n, total: print(f"\r{n}/{total}", end="", file=sys.stderr, flush=True),
        )
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(file=sys.stderr)
    for kind in options.kinds:
        for part, found in report[kind].items():
            numbers = "; ".join(f"{name} {share_text(share)}" for name, share in found.items())
            print(f"{kind} {part}: {numbers}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Draw edits of emoji scenes: scripts/prepare_emoji_edits.py data/emoji-edits-64 --composed data/emoji-composed-64"""

import argparse
import sys
from pathlib import Path

from ldm.demos.emoji_edits import write_emoji_edits
from ldm.demos.emoji_edits_score import read_emoji_edits
from ldm.errors import UserError


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Draw pairs of emoji scenes before and after an edit, with the instruction, for `task: edit`."
    )
    parser.add_argument("dest", type=Path, help="the folder to create; absent or empty")
    parser.add_argument(
        "--composed",
        type=Path,
        required=True,
        help="the composed dataset (prepare_composed_emoji.py): its objects are drawn, and what it holds out is not",
    )
    parser.add_argument("--size-px", type=int, default=64, help="side of the images, a multiple of 4 (64)")
    parser.add_argument("--num-edits", type=int, default=10_000, help="pairs to draw (10000)")
    parser.add_argument(
        "--seed", type=int, default=0, help="another seed draws other edits; 1 is for scoring (0)"
    )
    options = parser.parse_args()
    try:
        write_emoji_edits(
            options.dest,
            read_emoji_edits(options.composed, options.size_px),
            num_edits=options.num_edits,
            seed=options.seed,
            on_progress=lambda done, total: print(
                f"\r{done}/{total}", end="" if done < total else "\n", file=sys.stderr, flush=True
            ),
        )
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(options.dest)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Make the composed emoji dataset: python scripts/prepare_composed_emoji.py data/emoji-composed-64"""

import argparse
import sys
import time
from pathlib import Path

from ldm.demos.emoji_composed import prepare_composed_emoji
from ldm.errors import UserError


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Make scenes of emoji with exact captions: colours, backgrounds, pairs and numbers of objects."
    )
    parser.add_argument("dest", type=Path, help="the folder to create; absent or empty")
    parser.add_argument(
        "--size-px", type=int, default=64, help="side of the square images, a multiple of 4 (64)"
    )
    parser.add_argument("--num-pairs", type=int, default=8_000, help="images of two objects (8000)")
    parser.add_argument(
        "--num-coloured-counts", type=int, default=1_000, help="images of several objects in a colour (1000)"
    )
    parser.add_argument("--packages", type=Path, help="folder with the two .tgz files, instead of npm pack")
    return parser.parse_args()


class Progress:
    """A line on stderr, at most twice a second."""

    def __init__(self) -> None:
        self.last_sec = time.monotonic()

    def __call__(self, what: str, done: int, total: int) -> None:
        if time.monotonic() - self.last_sec > 0.5 or done == total:
            self.last_sec = time.monotonic()
            print(f"\r{what} {done}/{total}", end="\n" if done == total else "", file=sys.stderr, flush=True)


def main() -> int:
    options = parse()
    try:
        summary = prepare_composed_emoji(
            options.dest,
            size_px=options.size_px,
            num_pairs=options.num_pairs,
            num_coloured_counts=options.num_coloured_counts,
            packages=options.packages,
            on_progress=Progress(),
        )
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    counts = ", ".join(f"{count} {kind}" for kind, count in summary["num_images"].items())
    print(f"{options.dest}: {counts}, of {summary['num_objects']} objects")
    return 0


if __name__ == "__main__":
    sys.exit(main())

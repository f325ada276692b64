"""Make the emoji dataset: python scripts/prepare_emoji.py data/emoji-64 --size-px 64 --subset clear"""

import argparse
import sys
import time
from pathlib import Path

from ldm.demos.emoji import SUBSETS, prepare_emoji
from ldm.errors import UserError


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Make the emoji dataset: images, captions, attribution.")
    parser.add_argument("dest", type=Path, help="the folder to create; absent or empty")
    parser.add_argument("--size-px", type=int, default=64, help="side of the square images (64)")
    parser.add_argument("--subset", default="clear", help=f"{', '.join(SUBSETS)} (clear)")
    parser.add_argument(
        "--skin-tones", action="store_true", help="include skin-tone variants; with --subset all or hands"
    )
    parser.add_argument("--packages", type=Path, help="folder with the two .tgz files, instead of npm pack")
    return parser.parse_args()


class Progress:
    """A line on stderr, after the first two seconds."""

    def __init__(self) -> None:
        self.start_sec = time.monotonic()

    def __call__(self, what: str, done: int, total: int) -> None:
        if done == 0:
            print(f"{what} ...", file=sys.stderr)
        elif time.monotonic() - self.start_sec > 2 and (done % 20 == 0 or done == total):
            print(f"\r{what} {done}/{total}", end="\n" if done == total else "", file=sys.stderr, flush=True)


def main() -> int:
    options = parse()
    try:
        summary = prepare_emoji(
            options.dest,
            size_px=options.size_px,
            subset=options.subset,
            skin_tones=options.skin_tones,
            packages=options.packages,
            on_progress=Progress(),
        )
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    left_out = ", ".join(f"{count} {reason}" for reason, count in summary["left_out"].items())
    print(f"{options.dest}: {summary['used']} of {summary['found']} images; left out: {left_out or 'none'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

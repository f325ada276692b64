"""Cut parts out of emoji to learn enlarging from: scripts/prepare_emoji_tiles.py DEST --data data/emoji-all-256"""

import argparse
import sys
from pathlib import Path

from ldm.demos.emoji_tiles import read_emoji, write_emoji_tiles
from ldm.errors import UserError


def main() -> int:
    parser = argparse.ArgumentParser(description="Cut parts out of emoji, for `task: upscale`.")
    parser.add_argument("dest", type=Path, help="the folder to create; absent or empty")
    parser.add_argument(
        "--data",
        type=Path,
        required=True,
        help="emoji of 256 px (prepare_emoji.py --size-px 256 --subset all)",
    )
    parser.add_argument("--tiles-each", type=int, default=6, help="parts of each emoji (6)")
    parser.add_argument("--size-px", type=int, default=64, help="side of the parts (64)")
    options = parser.parse_args()
    try:
        written = write_emoji_tiles(
            options.dest,
            read_emoji(options.data),
            tiles_each=options.tiles_each,
            size_px=options.size_px,
            on_progress=lambda done, total: print(
                f"\r{done}/{total}", end="" if done < total else "\n", file=sys.stderr, flush=True
            ),
        )
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{options.dest}: {written} images")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Draw the shapes dataset: python scripts/prepare_shapes.py data/shapes-32 --num-images 20000 --size-px 32

With --edits, pairs of scenes for `task: edit`.
"""

import argparse
import sys
from pathlib import Path

from ldm.demos.shapes_drawing import write_shapes
from ldm.demos.shapes_edits import write_edits
from ldm.errors import UserError


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Draw scenes of shapes with exact captions.")
    parser.add_argument("dest", type=Path, help="the folder to create; absent or empty")
    parser.add_argument("--num-images", type=int, default=10_000, help="number of images (10000)")
    parser.add_argument("--size-px", type=int, default=64, help="side of the square images (64)")
    parser.add_argument("--seed", type=int, default=0, help="each seed gives another set (0)")
    parser.add_argument("--held-out", action="store_true", help="only combinations held out of training")
    parser.add_argument("--plain", action="store_true", help="only one or two large things on white")
    parser.add_argument(
        "--edits",
        action="store_true",
        help="pairs of plain scenes with the instruction between them, for task: edit",
    )
    return parser.parse_args()


def main() -> int:
    options = parse()
    given = {"size_px": options.size_px, "seed": options.seed, "held_out": options.held_out}
    try:
        if options.edits:
            write_edits(options.dest, num_edits=options.num_images, **given)
        else:
            write_shapes(options.dest, num_images=options.num_images, plain=options.plain, **given)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{options.dest}: {options.num_images} images of {options.size_px} px")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Draw scenes with their silhouettes: python scripts/prepare_shapes_hints.py data/shapes-hints-32 --num-images 20000"""

import argparse
import sys
from pathlib import Path

from ldm.demos.shapes_hints import write_shapes_with_hints
from ldm.errors import UserError


def main() -> int:
    parser = argparse.ArgumentParser(description="Draw scenes of shapes with captions and silhouettes.")
    parser.add_argument("dest", type=Path, help="the folder to create; absent or empty")
    parser.add_argument("--num-images", type=int, default=20_000, help="number of images (20000)")
    parser.add_argument("--size-px", type=int, default=32, help="side of the square images (32)")
    parser.add_argument("--seed", type=int, default=0, help="each seed gives another set (0)")
    options = parser.parse_args()
    try:
        write_shapes_with_hints(
            options.dest, num_images=options.num_images, size_px=options.size_px, seed=options.seed
        )
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{options.dest}: {options.num_images} images of {options.size_px} px with silhouettes")
    return 0


if __name__ == "__main__":
    sys.exit(main())

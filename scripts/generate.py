"""Generate images with the Python API: python scripts/generate.py "a red apple" --seed 7"""

import argparse
from pathlib import Path

from ldm import load_pipeline
from ldm.pipeline.record import write_png


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Generate images from a prompt.")
    parser.add_argument("prompt")
    parser.add_argument("--model", default="emoji", help="emoji, a model folder or a Hub id (emoji)")
    parser.add_argument("--seed", type=int, default=0, help="seed N of the first image (0)")
    parser.add_argument(
        "--num-images", type=int, default=1, help="number of images, with seeds N, N+1, ... (1)"
    )
    parser.add_argument(
        "--output", type=Path, default=Path("outputs"), help="folder for the images (outputs)"
    )
    return parser.parse_args()


def main() -> None:
    args = parse()
    made = load_pipeline(args.model).generate(args.prompt, seed=args.seed, num_images=args.num_images)
    for image, settings in zip(made.images, made.settings, strict=True):
        path = args.output / f"{settings['seed']}.png"
        write_png(path, image, settings)
        print(path)


if __name__ == "__main__":
    main()

"""Pictures through the Python API: python scripts/generate.py "a red apple" --seed 7"""

import argparse
from pathlib import Path

from ldm import load_pipeline
from ldm.pipeline.record import write_png


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Make pictures of a prompt.")
    parser.add_argument("prompt")
    parser.add_argument("--model", default="emoji", help="emoji, a model folder or a Hub id (emoji)")
    parser.add_argument("--seed", type=int, default=0, help="of the first picture (0)")
    parser.add_argument("--num-images", type=int, default=1, help="with seeds N, N+1, ... (1)")
    parser.add_argument("--output", type=Path, default=Path("outputs"), help="folder (outputs)")
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

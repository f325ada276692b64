"""How often the watermark of `--watermark` survives, and how often the detector is wrong.

    python scripts/watermark_survival.py PHOTOS docs/benchmarks/provenance.json

PHOTOS is a folder of photographs; they are cut into tiles. Prints the table of docs/benchmarks/provenance.md.
With --model, images are also made anew by image-to-image, which a weak watermark does not survive.
"""

import argparse
from pathlib import Path

from ldm.demos.watermark_survival import (
    CHANGES,
    false_alarms_of_search,
    made_anew,
    markdown,
    null_distribution,
    survival,
    tiles,
)
from ldm.io.files import write_json
from ldm.pipeline.pipeline import load_pipeline


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--images", type=int, default=60)
    parser.add_argument("--model", help="make images anew with this model: emoji, a folder or a Hub id")
    parser.add_argument("--strengths", type=float, nargs="+", default=[0.05, 0.1, 0.2, 0.3])
    options = parser.parse_args()
    images = tiles(options.photos, options.images)
    changes = dict(CHANGES)
    if options.model:
        pipeline = load_pipeline(options.model)
        for strength in options.strengths:
            changes[f"made anew by {pipeline.model_id}, strength {strength:g}"] = made_anew(
                pipeline, strength
            )
    made = {
        "survival": survival(images, changes),
        "null": null_distribution(images),
        "search": false_alarms_of_search(images),
    }
    write_json(options.output, made)
    print(markdown(made))


if __name__ == "__main__":
    main()

"""How often the watermark of `--watermark` survives, and how often the detector is wrong.

    python scripts/watermark_survival.py PHOTOS docs/benchmarks/provenance.json

PHOTOS is a folder of photographs; they are cut into tiles. Prints the table of docs/benchmarks/provenance.md.
"""

import argparse
from pathlib import Path

from ldm.demos.watermark_survival import false_alarms_of_search, markdown, null_distribution, survival, tiles
from ldm.io.files import write_json


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--images", type=int, default=60)
    options = parser.parse_args()
    images = tiles(options.photos, options.images)
    made = {
        "survival": survival(images),
        "null": null_distribution(images),
        "search": false_alarms_of_search(images),
    }
    write_json(options.output, made)
    print(markdown(made))


if __name__ == "__main__":
    main()

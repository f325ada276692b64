"""Put generated images side by side, with their prompts: python scripts/contact_sheet.py sheet.png IMAGE..."""

import argparse
import sys
from pathlib import Path

from PIL import Image

from ldm.errors import UserError
from ldm.io.files import write_new
from ldm.io.images import image_grid, open_image
from ldm.io.png import with_chunks
from ldm.pipeline.record import read_settings
from ldm.provenance.marks import EDITED, mark_texts


def main() -> int:
    parser = argparse.ArgumentParser(description="Put generated images side by side, with their prompts.")
    parser.add_argument("sheet", type=Path, help="the PNG file to write; an earlier one is replaced")
    parser.add_argument("images", type=Path, nargs="+", help="files that `ldm generate` wrote")
    parser.add_argument("--side-px", type=int, default=256, help="what each image is scaled to (256)")
    parser.add_argument("--columns", type=int, help="images in a row (all of them)")
    options = parser.parse_args()
    try:
        size = (options.side_px, options.side_px)
        shown = [open_image(path).resize(size, Image.Resampling.NEAREST) for path in options.images]
        prompts = [read_settings(path)["prompt"] for path in options.images]
        sheet = image_grid(shown, num_columns=options.columns or len(shown), captions=prompts)
        write_new(options.sheet, with_chunks(sheet, mark_texts(EDITED)), overwrite=True)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(options.sheet)
    return 0


if __name__ == "__main__":
    sys.exit(main())

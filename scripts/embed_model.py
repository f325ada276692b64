"""Put a trained model into the package: python scripts/embed_model.py runs/emoji ldm/assets/emoji"""

import argparse
import sys
from pathlib import Path

import torch

from ldm.demos.emoji_card import emoji_card, emoji_edit_card
from ldm.errors import UserError
from ldm.io.files import write_bytes
from ldm.models.loading.folder import weights_hash
from ldm.models.loading.model import load_parts, save_parts

SCRIPTS = {
    "denoiser": "make_emoji_model.sh",
    "composed": "make_composed_emoji_model.sh",
    "edit": "make_emoji_edit_model.sh",
}


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Store a trained emoji model as fp16 shards with its model card."
    )
    parser.add_argument("runs", type=Path, help="the folder with the runs of make_emoji_model.sh")
    parser.add_argument("dest", type=Path, help="where to put it; an existing folder is replaced")
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--composed", action="store_true", help="the model that make_composed_emoji_model.sh trained further"
    )
    which.add_argument("--edit", action="store_true", help="the model of make_emoji_edit_model.sh")
    options = parser.parse_args()
    kind = "edit" if options.edit else "composed" if options.composed else "denoiser"
    source, script = options.runs / kind / "pipeline", SCRIPTS[kind]
    try:
        card = (
            emoji_edit_card(options.runs)
            if options.edit
            else emoji_card(options.runs, composed=options.composed)
        )
        provenance = {"made_by": f"scripts/{script}", "weights_sha256": weights_hash(source)}
        save_parts(
            load_parts(source),
            options.dest,
            dtype=torch.float16,
            max_shard_size="14MB",
            provenance=provenance,
            replace=True,
        )
        write_bytes(options.dest / "README.md", card.encode())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(options.dest)
    return 0


if __name__ == "__main__":
    sys.exit(main())

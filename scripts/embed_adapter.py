"""Put the adapter for few steps into the package: python scripts/embed_adapter.py runs/emoji ldm/assets/emoji-fast"""

import argparse
import sys
from pathlib import Path

import torch

from ldm.demos.emoji_card import emoji_fast_card
from ldm.errors import UserError
from ldm.io.files import write_bytes
from ldm.models.adapters.folder import LORA_FILE, read_adapter, save_adapter
from ldm.models.adapters.lora_files import read_lora
from ldm.models.loading.folder import read_defaults, weights_hash


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Store a trained LoRA in half precision, with its model card."
    )
    parser.add_argument("runs", type=Path, help="the folder with the runs of make_emoji_fast_model.sh")
    parser.add_argument("dest", type=Path, help="where to put it; an existing folder is replaced")
    options = parser.parse_args()
    source = options.runs / "lcm" / "pipeline"
    try:
        card = emoji_fast_card(options.runs)
        save_adapter(
            options.dest,
            read_adapter(source),
            read_lora(source / LORA_FILE),
            read_defaults(source, 64, 64),
            provenance={
                "made_by": "scripts/make_emoji_fast_model.sh",
                "weights_sha256": weights_hash(source),
            },
            replace=True,
            dtype=torch.float16,
        )
        write_bytes(options.dest / "README.md", card.encode())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(options.dest)
    return 0


if __name__ == "__main__":
    sys.exit(main())

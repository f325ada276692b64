"""Put a trained model into the package: python scripts/embed_model.py runs/emoji ldm/assets/emoji"""

import argparse
import sys
from pathlib import Path

import torch

from ldm.demos.emoji_card import emoji_card
from ldm.errors import UserError
from ldm.io.files import write_bytes
from ldm.models.loading.folder import weights_hash
from ldm.models.loading.model import load_parts, save_parts


def main() -> int:
    parser = argparse.ArgumentParser(description="Store a trained emoji model as fp16 shards with its card.")
    parser.add_argument("runs", type=Path, help="the folder that holds the runs of make_emoji_model.sh")
    parser.add_argument("dest", type=Path, help="where to put it; an existing model there is replaced")
    options = parser.parse_args()
    source = options.runs / "denoiser" / "pipeline"
    try:
        card = emoji_card(options.runs)
        provenance = {"made_by": "scripts/make_emoji_model.sh", "weights_sha256": weights_hash(source)}
        save_parts(
            load_parts(source),
            options.dest,
            dtype=torch.float16,
            max_shard_size="14MB",
            provenance=provenance,
            replace=True,
        )
        write_bytes(options.dest / "README.md", card.to_markdown().encode())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(options.dest)
    return 0


if __name__ == "__main__":
    sys.exit(main())

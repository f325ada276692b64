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

KINDS = {
    "denoiser": ("denoiser", "make_emoji_model.sh"),
    "composed": ("composed-longer", "make_composed_emoji_model.sh"),
    "edit": ("edit", "make_emoji_edit_model.sh"),
}


def card_of(runs: Path, kind: str) -> str:
    return emoji_edit_card(runs) if kind == "edit" else emoji_card(runs, composed=kind == "composed")


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Store a trained emoji model as fp16 shards with its model card."
    )
    parser.add_argument("runs", type=Path, help="the folder with the runs of make_emoji_model.sh")
    parser.add_argument("dest", type=Path, help="where to put it; an existing folder is replaced")
    parser.add_argument("--kind", choices=KINDS, default="denoiser", help="which of the runs (denoiser)")
    options = parser.parse_args()
    run, script = KINDS[options.kind]
    source = options.runs / run / "pipeline"
    try:
        card = card_of(options.runs, options.kind)
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

"""Pictures of noise with captions, as a folder that diffusers' script and ours both read."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from .models import CAPTIONS


def make_dataset(folder: Path, num_images: int, size_px: int) -> Path:
    """Write `num_images` images and their `metadata.jsonl`, always the same; returns the folder."""
    folder.mkdir(parents=True)
    drawn = np.random.default_rng(0)
    lines = []
    for number in range(num_images):
        coarse = drawn.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        name = f"{number:03d}.png"
        Image.fromarray(coarse).resize((size_px, size_px), Image.Resampling.BICUBIC).save(folder / name)
        lines.append(json.dumps({"file_name": name, "text": CAPTIONS[number % len(CAPTIONS)]}))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return folder

"""Silhouettes of drawn scenes: white where the image is not background."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from ldm.demos.shapes_hints import write_shapes_with_hints


def test_every_image_has_the_silhouettes_of_its_things(tmp_path: Path) -> None:
    write_shapes_with_hints(tmp_path / "data", num_images=4, seed=3)
    rows = [json.loads(line) for line in (tmp_path / "data/metadata.jsonl").read_text().splitlines()]
    assert len(rows) == 4
    for row in rows:
        image = np.asarray(Image.open(tmp_path / "data" / row["file_name"]))
        hint = np.asarray(Image.open(tmp_path / "data" / row["control_file_name"]))
        assert hint.max() == 255 and hint.shape == image.shape[:2]
        drawn = (image < 255).any(axis=2)
        assert drawn[hint > 127].all() and not drawn[hint == 0].any()

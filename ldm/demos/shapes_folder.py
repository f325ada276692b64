"""Writes drawn scenes as an ImageFolder dataset.

DEST/images/000000.png      RGB, size_px square
DEST/metadata.jsonl         a row an image: file_name, text, and flip: false ("to the left of" must stay true)
"""

import json
from pathlib import Path

from ldm.demos.shapes import held_out_scene, training_scene
from ldm.demos.shapes_drawing import draw
from ldm.errors import UserError
from ldm.io.files import new_folder

SMALLEST_SIZE_PX = 32


def write_shapes(
    dest: Path,
    *,
    num_images: int,
    size_px: int = 64,
    seed: int = 0,
    held_out: bool = False,
    plain: bool = False,
) -> None:
    """Draw the first `num_images` training scenes of `seed`, or with `held_out` its held-out scenes.

    `plain`: only large things on white, one or two in a relation.

    The folder appears whole or not at all; row i depends on (seed, i, held_out, plain) alone.

    Raises:
        UserError: `dest` holds something already or cannot be written, or a number is too small.
    """
    if num_images < 1:
        raise UserError(f"num_images is {num_images}", "draw at least 1")
    if size_px < SMALLEST_SIZE_PX:
        raise UserError(f"size_px is {size_px}", f"small things are legible from {SMALLEST_SIZE_PX} on")
    scene_of = held_out_scene if held_out else training_scene
    with new_folder(dest) as folder, (folder / "metadata.jsonl").open("w", encoding="utf-8") as rows:
        (folder / "images").mkdir()
        for index in range(num_images):
            scene = scene_of(seed, index, plain=plain)
            name = f"images/{index:06d}.png"
            draw(scene, size_px, seed, index).save(folder / name)
            rows.write(json.dumps({"file_name": name, "text": scene.caption, "flip": False}) + "\n")

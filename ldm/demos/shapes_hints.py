"""Drawn scenes with the silhouettes of their things, for training a ControlNet."""

import json
from pathlib import Path

from PIL import Image

from ldm.demos.shapes import Scene, training_scene
from ldm.demos.shapes_drawing import coverage, draw, place
from ldm.io.folders import new_folder


def silhouettes(scene: Scene, size_px: int, *key: int | str) -> Image.Image:
    """The things of a scene in white on black, where `draw` puts them with the same key."""
    image = Image.new("L", (size_px, size_px))
    for thing, box in zip(scene.things, place(scene, *key), strict=True):
        corner = (box.left * size_px, box.top * size_px)
        image.paste(255, mask=coverage(thing.shape, corner, box.extent * size_px, (size_px, size_px)))
    return image


def write_shapes_with_hints(dest: Path, *, num_images: int, size_px: int = 32, seed: int = 0) -> None:
    """Draw the first plain training scenes of `seed`, each with its silhouettes as `control_file_name`.

    The folder appears when complete, or not at all. Row i depends only on (seed, i).

    Raises:
        UserError: `dest` is not empty or cannot be written.
    """
    with (
        new_folder(dest, manifest=False) as folder,
        (folder / "metadata.jsonl").open("w", encoding="utf-8") as rows,
    ):
        for name in ("images", "hints"):
            (folder / name).mkdir()
        for index in range(num_images):
            scene = training_scene(seed, index, plain=True)
            row = {"file_name": f"images/{index:06d}.png", "control_file_name": f"hints/{index:06d}.png"}
            draw(scene, size_px, seed, index).save(folder / row["file_name"])
            silhouettes(scene, size_px, seed, index).save(folder / row["control_file_name"])
            rows.write(json.dumps({**row, "text": scene.caption, "flip": False}) + "\n")

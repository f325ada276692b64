"""One large shape in the middle of images of several sizes and forms, whose crops cut it off; and what an image shows.

For models that are told the size and the crop of an image (Podell et al. 2023, section 2.2). Training at 32 px scales
an image until its shorter side fits, and cuts a square out of it. Of a square image that is all, of one twice as wide
or high it often cuts off a part of the shape.

`write_crops` writes an ImageFolder dataset, `images/000000.png` and `metadata.jsonl`: the images, or with `cut` the
crops that training would take of them, as images of their own. A model trained on those sees the same and is told
nothing.
"""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from ldm.data.buckets import BucketSettings, Placement, place
from ldm.data.transform import transform_image
from ldm.demos.shapes import BACKGROUNDS, COLOURS, SHAPES, Scene, Thing
from ldm.demos.shapes_drawing import coverage
from ldm.demos.shapes_regions import Array, ink_of, read_pixels
from ldm.errors import UserError
from ldm.io.folders import new_folder
from ldm.io.images import tensor_to_images
from ldm.noise import choice, uniform

SIZE_PX = 32
"""Side of the images that are trained on."""
SHORT_SIDES_PX = (16, 32, 64)
"""Shorter sides of the files: enlarged to twice the size, as they are, reduced to half."""
FORMS = ((1, 1), (1, 2), (2, 1))
"""Height and width in shorter sides."""
NUM_CROPS = 8
EXTENT, MARGIN = 0.6, 0.08
"""Side of the shape and its least distance to the edge of the middle square, in shorter sides."""
WHITE = np.asarray(BACKGROUNDS["white"], np.float32)
BORDER_PX = 2
"""How near to a side ink counts as cut off. The autoencoder has only seen white borders and fades the last pixel:
of true images cut off at the top, 5 % still seem cut off after its round trip if only that pixel counts."""
LEAST_INK = 0.02
"""Share of an image's pixels below which it shows nothing."""

Size = tuple[int, int]


def lone_scene(shape: str, colour: str) -> Scene:
    """One large thing on white."""
    return Scene((Thing(shape, colour, "large"),))


def all_scenes() -> list[Scene]:
    """Every shape in every colour."""
    return [lone_scene(shape, colour) for shape in SHAPES for colour in COLOURS]


def scene_at(seed: int, index: int) -> tuple[Scene, Size]:
    """Scene `index` of the endless set `seed`, and the height and width of its image in pixels; a pure function."""

    def pick(what: str, num_choices: int) -> int:
        return choice(num_choices, "shapes crops", seed, index, what)

    scene = lone_scene(SHAPES[pick("shape", len(SHAPES))], list(COLOURS)[pick("colour", len(COLOURS))])
    short, form = SHORT_SIDES_PX[pick("side", len(SHORT_SIDES_PX))], FORMS[pick("form", len(FORMS))]
    return scene, (short * form[0], short * form[1])


def draw_in_middle(scene: Scene, size: Size, *key: int | str) -> Image.Image:
    """The scene's thing within the middle square of an RGB image of this height and width; the key places it."""
    height, width = size
    short = min(size)
    slack = 1 - 2 * MARGIN - EXTENT
    x, y = (MARGIN + slack * uniform("shapes crops", *key, axis) for axis in "xy")
    corner = ((width - short) / 2 + x * short, (height - short) / 2 + y * short)
    image = Image.new("RGB", (width, height), BACKGROUNDS[scene.background])
    mask = coverage(scene.things[0].shape, corner, EXTENT * short, (width, height))
    image.paste(COLOURS[scene.things[0].colour], mask=mask)
    return image


def write_crops(dest: Path, *, num_images: int, seed: int = 0, cut: bool = False) -> None:
    """Draw the first images of `seed`. The folder appears when complete, or not at all.

    Args:
        cut: write the `NUM_CROPS` crops of each in its place, with one size for all.

    Raises:
        UserError: `dest` is not empty or cannot be written, or the number is too small.
    """
    if num_images < 1:
        raise UserError(f"num_images is {num_images}", "draw at least 1")
    with (
        new_folder(dest, manifest=False) as folder,
        (folder / "metadata.jsonl").open("w", encoding="utf-8") as rows,
    ):
        (folder / "images").mkdir()
        for index in range(num_images):
            scene, size = scene_at(seed, index)
            name = f"images/{index:06d}.png"
            image = draw_in_middle(scene, size, seed, index)
            found = crops_of(image, seed, name) if cut else [image]
            for number, one in enumerate(found):
                own = name.replace(".png", f"-{number}.png") if cut else name
                one.save(folder / own)
                rows.write(json.dumps({"file_name": own, "text": scene.caption}) + "\n")


def crops_of(image: Image.Image, seed: int, sample_id: str) -> list[Image.Image]:
    """The crops that training with these settings takes of an image: `SIZE_PX` square."""
    settings = BucketSettings(upscale=True, crop_variants=NUM_CROPS)
    where = place(
        image.width,
        image.height,
        height=SIZE_PX,
        width=SIZE_PX,
        multiple=1,
        settings=settings,
        seed=seed,
        sample_id=sample_id,
    )
    assert isinstance(where, Placement)  # `upscale` places every image
    return [tensor_to_images(transform_image(image, where, crop)[None])[0] for crop in range(NUM_CROPS)]


# What an image shows


def ink_amount(image: Image.Image) -> Array:
    """How much of each pixel is ink on white, [H, W] from 0 to 1."""
    return ink_of(read_pixels(image), WHITE)


def cut_sides(image: Image.Image) -> frozenset[str] | None:
    """The sides that the image's ink comes within `BORDER_PX` of: half a pixel's ink. None if there is hardly any."""
    ink = ink_amount(image) >= 0.5
    if ink.mean() < LEAST_INK:
        return None
    near, far = slice(BORDER_PX), slice(-BORDER_PX, None)
    edges = {"top": ink[near], "bottom": ink[far], "left": ink[:, near], "right": ink[:, far]}
    return frozenset(side for side, pixels in edges.items() if pixels.any())


def edge_width_px(image: Image.Image) -> float:
    """How soft an image's edges are: sum |d| / sum d^2, over the differences d of the ink of neighbouring pixels.

    A step from 0 to 1 in w equal parts gives w.
    """
    ink = ink_amount(image)
    steps = np.concatenate([np.abs(np.diff(ink, axis=axis)).ravel() for axis in (0, 1)])
    return float(steps.sum() / max(float((steps**2).sum()), 1e-6))

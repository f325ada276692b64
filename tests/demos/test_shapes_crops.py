"""Drawn images whose crops cut the shape off, their judge, and a small model that is told sizes."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from ldm.demos.shapes_crops import (
    EXTENT,
    MARGIN,
    NUM_CROPS,
    SIZE_PX,
    all_scenes,
    crops_of,
    cut_sides,
    draw_in_middle,
    edge_width_px,
    lone_scene,
    scene_at,
    write_crops,
)
from ldm.demos.shapes_crops_score import REQUESTS, Request, judged, softness
from ldm.errors import UserError

SQUARE, WIDE = (SIZE_PX, SIZE_PX), (SIZE_PX, 2 * SIZE_PX)


@pytest.mark.parametrize("scene", all_scenes(), ids=lambda scene: scene.caption)
def test_the_judge_sees_what_is_cut_off(scene) -> None:  # type: ignore[no-untyped-def]
    """At every end of a long image, and nowhere in a square one, for every shape and colour."""
    for name, request in REQUESTS.items():
        image = draw_in_middle(scene, request.original_size, "judged")
        top, left = request.crop
        cut = image.crop((left, top, left + SIZE_PX, top + SIZE_PX))
        assert cut_sides(cut) == request.cut, name


def test_the_judge_sees_an_image_of_nothing() -> None:
    assert cut_sides(Image.new("RGB", SQUARE, "white")) is None
    pale = Image.new("RGB", SQUARE, "white")
    pale.paste((250, 250, 240), (4, 4, 28, 28))
    assert cut_sides(pale) is None


def test_the_width_of_an_edge_is_that_of_its_ramp() -> None:
    red = np.array([220, 30, 40], np.float32)

    def ramp(width: int) -> Image.Image:
        ink = np.clip((np.arange(SIZE_PX) - 8) / width, 0, 1)[None, :, None]
        return Image.fromarray((255 + ink * (red - 255)).repeat(SIZE_PX, 0).round().astype(np.uint8))

    for width in (1, 2, 4, 8):
        assert edge_width_px(ramp(width)) == pytest.approx(width, rel=0.03)


def test_a_shape_lies_in_the_middle_square_of_each_form() -> None:
    sizes = {scene_at(0, index)[1] for index in range(300)}
    assert len(sizes) == 9
    for size in sizes:
        image = np.asarray(draw_in_middle(lone_scene("square", "blue"), size, 5).convert("L"))
        rows, columns = (np.nonzero((image < 200).any(axis))[0] for axis in (1, 0))
        short = min(size)
        for found, side in ((rows, size[0]), (columns, size[1])):
            first = (side - short) / 2 + MARGIN * short
            assert first - 1 <= found[0] and found[-1] <= first + (1 - 2 * MARGIN) * short
            assert len(found) == pytest.approx(EXTENT * short, abs=1.1)


def test_the_images_and_their_crops_as_images(tmp_path: Path) -> None:
    write_crops(tmp_path / "images", num_images=6)
    write_crops(tmp_path / "cut", num_images=6, cut=True)
    rows, cut = (
        [json.loads(line) for line in (tmp_path / name / "metadata.jsonl").read_text().splitlines()]
        for name in ("images", "cut")
    )
    assert len(rows) == 6 and [row["text"] for row in cut] == [
        row["text"] for row in rows for _ in range(NUM_CROPS)
    ]
    for index, row in enumerate(rows):
        image = Image.open(tmp_path / "images" / row["file_name"])
        assert (image.height, image.width) == scene_at(0, index)[1]
        for crop, own in zip(crops_of(image, 0, row["file_name"]), cut[NUM_CROPS * index :], strict=False):
            written = Image.open(tmp_path / "cut" / own["file_name"])
            assert written.size == SQUARE and written.tobytes() == crop.tobytes()
    with pytest.raises(UserError, match="num_images is 0: draw at least 1"):
        write_crops(tmp_path / "none", num_images=0)
    assert not (tmp_path / "none").exists()


def test_shares_of_known_images() -> None:
    """Forty whole shapes, of which two are cut off and one is of another colour."""
    images = [draw_in_middle(scene, SQUARE, index) for index, scene in enumerate(all_scenes())]
    images[0] = draw_in_middle(all_scenes()[0], WIDE, 0).crop((0, 0, *SQUARE))
    images[1] = Image.new("RGB", SQUARE, "white")
    images[2] = draw_in_middle(all_scenes()[3], SQUARE, 2)
    found = judged(images, Request(SQUARE, (0, 0)))
    counts = {name: (share["num_right"], share["num_judged"]) for name, share in found.items()}
    assert counts == {"as_asked": (38, 40), "whole": (38, 40), "right": (37, 40)}
    at_the_left = judged(images, Request(WIDE, (0, 0), frozenset({"right"})))
    assert (at_the_left["as_asked"]["num_right"], at_the_left["whole"]["num_right"]) == (1, 38)
    assert found["whole"]["low"] < 38 / 40 < found["whole"]["high"]
    soft = [image.filter(ImageFilter.GaussianBlur(1)) for image in images[2:]]
    sizes = softness([*soft[:-1], images[-1]], images[2:])
    assert sizes["softer"]["num_right"] == 37 and sizes["small_edge_width_px"] > sizes["large_edge_width_px"]

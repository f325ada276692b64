"""Resizing images, conversion to tensors and back, and grids."""

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.errors import UserError
from ldm.io.images import (
    image_grid,
    image_to_tensor,
    resize_and_crop,
    tensor_to_images,
)

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def test_resize_and_crop_covers_and_cuts() -> None:
    stripes = Image.fromarray(
        np.tile(np.arange(0, 240, 8, dtype=np.uint8)[None, :, None], (10, 1, 3))
    )  # 30 x 10
    assert np.array_equal(np.asarray(resize_and_crop(stripes, 10, 30)), np.asarray(stripes))
    for crop, first in ((0.0, 0), (0.5, 10), (1.0, 20)):
        cut = resize_and_crop(stripes, 10, 10, crop=(0.3, crop))
        assert np.array_equal(np.asarray(cut), np.asarray(stripes)[:, first : first + 10])
    tall = stripes.transpose(Image.Transpose.TRANSPOSE)
    cut = resize_and_crop(tall, 10, 10, crop=(1.0, 0.3))
    assert np.array_equal(np.asarray(cut), np.asarray(tall)[20:])


def test_resize_is_antialiased_and_any_size_fits() -> None:
    checks = Image.fromarray((np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)).convert("RGB")
    grey = np.asarray(resize_and_crop(checks, 8, 8)).astype(int)
    assert np.abs(grey - 127.5).max() < 3
    for size in ((1, 1), (3, 7), (333, 1000), (1000, 333), (17, 64)):
        for crop in (0.0, 0.37, 1.0):
            assert resize_and_crop(checks, *size, crop=(crop, crop)).size == size[::-1]


def test_image_to_tensor_and_back_is_exact() -> None:
    values = np.arange(256, dtype=np.uint8).reshape(8, 32, 1).repeat(3, axis=2)
    values[..., 1] = values[..., 1][::-1]
    tensor = image_to_tensor(Image.fromarray(values))
    assert tensor.shape == (3, 8, 32) and tensor.dtype == torch.float32
    assert tensor.min() == -1 and tensor.max() == 1
    assert tensor[:, 0, 0].tolist() == pytest.approx([-1, 224 / 127.5 - 1, -1])
    assert np.array_equal(np.asarray(tensor_to_images(tensor[None])[0]), values)


def test_tensors_round_as_diffusers_does() -> None:
    from diffusers.image_processor import VaeImageProcessor

    pixel_values = torch.cat([torch.linspace(-1.2, 1.2, 3 * 40 * 40), (torch.arange(4800) % 511) / 255 - 1])
    pixel_values = pixel_values.reshape(2, 3, 40, 40)
    processor = VaeImageProcessor()
    theirs = processor.postprocess(pixel_values)
    ours = tensor_to_images(pixel_values)
    assert [np.asarray(image).tolist() for image in ours] == [np.asarray(image).tolist() for image in theirs]
    assert torch.equal(image_to_tensor(ours[0]), processor.preprocess(theirs[0], height=40, width=40)[0])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_and_infinity_are_refused(bad: float) -> None:
    with pytest.raises(UserError, match="NaN"):
        tensor_to_images(torch.full((1, 3, 2, 2), bad))


def test_grid_places_images_in_rows() -> None:
    images = [Image.new("RGB", (4, 3), color) for color in (RED, GREEN, BLUE)]
    grid = image_grid(images, 2, gap_px=1, background=(9, 9, 9))
    assert grid.size == (2 * 4 + 3, 2 * 3 + 3)
    corners = [grid.getpixel(at) for at in ((1, 1), (6, 1), (1, 5), (6, 5), (0, 0), (5, 1), (4, 3))]
    assert corners == [RED, GREEN, BLUE, (9, 9, 9), (9, 9, 9), (9, 9, 9), RED]


def test_grid_draws_captions_inside_their_cell() -> None:
    images = [Image.new("RGB", (40, 8), RED)] * 3
    captions = ["a red thing\nthat needs far more room than there is " * 40, "", "猫 é 🙂"]
    grid = np.asarray(image_grid(images, 3, captions=captions))
    below = grid[10:]
    ink = [(below[:, 2 + i * 42 : 42 + i * 42] < 128).any() for i in range(3)]
    assert ink == [True, False, True]
    assert (grid[:, [0, 1, 42, 43, 84, 85, 126, 127]] == 255).all()
    assert (np.asarray(image_grid(images, 3, captions=captions, background=(0, 0, 0)))[10:] > 200).any()


def test_grid_refuses_no_images_and_wrong_captions() -> None:
    with pytest.raises(ValueError, match="0 images"):
        image_grid([], 2)
    with pytest.raises(ValueError, match="1 images with 2 captions"):
        image_grid([Image.new("RGB", (1, 1))], 2, captions=["a", "b"])

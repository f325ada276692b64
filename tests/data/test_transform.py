"""Pixel values and mask weights of a placed image, and the version number that must change with them."""

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.data.batches import ImageTransform
from ldm.data.buckets import BucketSettings, Placement, place
from ldm.data.sample import FileImage, Sample
from ldm.data.transform import TRANSFORM_VERSION, transform_image, transform_key, transform_mask
from ldm.errors import UserError


def picture(width: int, height: int) -> Image.Image:
    """Gradients with a fine, irregular texture; computed with integers, so the same on every machine."""
    y, x, c = np.indices((height, width, 3))
    return Image.fromarray(((7 * x + 3 * y + 50 * c + (x * y * (c + 1)) % 97) % 256).astype(np.uint8))


def placed(image: Image.Image, height: int, width: int, crop_variants: int = 1) -> Placement:
    placement = place(
        *image.size,
        height=height,
        width=width,
        multiple=8,
        settings=BucketSettings(upscale=True, crop_variants=crop_variants),
        seed=0,
        sample_id="a.png",
    )
    assert isinstance(placement, Placement)
    return placement


@pytest.mark.parametrize("image_size", [(40, 30), (33, 47), (100, 24), (24, 24), (9, 50)])
@pytest.mark.parametrize("flip", [False, True])
def test_the_center_crop_equals_the_transform_to_a_fixed_size(
    tmp_path: Path, image_size: tuple[int, int], flip: bool
) -> None:
    image = picture(*image_size)
    image.save(tmp_path / "a.png")
    sample = Sample("a.png", FileImage(tmp_path / "a.png"), ("a",))
    for height, width in ((24, 24), (16, 32), (32, 16)):
        made = transform_image(image, placed(image, height, width), 0, flip)
        assert made.shape == (3, height, width)
        plain = ImageTransform(height, width)(sample)
        assert torch.equal(made, plain.flip(-1) if flip else plain)


def test_without_scaling_crops_are_exact_to_the_pixel() -> None:
    image = picture(40, 24)
    whole = transform_image(image, placed(image, 24, 40))
    assert whole.min() >= -1 and whole.max() <= 1
    assert torch.equal(((whole + 1) * 127.5).round().byte(), torch.tensor(np.asarray(image)).permute(2, 0, 1))
    placement = placed(image, 24, 24, crop_variants=4)
    for number, (top, left) in enumerate(placement.crops):
        assert top == 0
        expected = whole[:, :, left : left + 24]
        assert torch.equal(transform_image(image, placement, number), expected)
        assert torch.equal(transform_image(image, placement, number, flip=True), expected.flip(-1))
    assert len({left for _, left in placement.crops}) > 2


def test_an_image_whose_shape_has_changed_is_refused() -> None:
    placement = placed(picture(40, 30), 24, 24)
    transform_image(picture(80, 60), placement)
    with pytest.raises(UserError, match="an image is 30 x 40 pixels and had another shape"):
        transform_image(picture(30, 40), placement)


def half_white(width: int, height: int, white_from: int) -> Image.Image:
    values = np.zeros((height, width), np.uint8)
    values[:, white_from:] = 255
    return Image.fromarray(values)


def test_a_mask_is_the_fraction_of_white_in_each_latent() -> None:
    placement = placed(picture(32, 16), 16, 32)
    weights = transform_mask(half_white(32, 16, 18), placement, pixels_per_latent=8)
    assert weights.shape == (1, 2, 4) and weights.dtype == torch.float32
    assert weights.tolist() == [[[0, 0, 0.75, 1]] * 2]
    flipped = transform_mask(half_white(32, 16, 18), placement, flip=True, pixels_per_latent=8)
    assert flipped.tolist() == [[[1, 0.75, 0, 0]] * 2]
    larger = transform_mask(half_white(64, 32, 36), placement, pixels_per_latent=8)
    assert torch.equal(larger, weights)
    assert transform_mask(Image.new("RGB", (32, 16), "white"), placement, pixels_per_latent=4).min() == 1


def test_a_mask_is_cropped_like_its_image() -> None:
    image = picture(64, 16)
    marks = Image.merge("RGB", [half_white(64, 16, 23)] * 3)
    placement = placed(image, 16, 16, crop_variants=6)
    for number in range(6):
        for flip in (False, True):
            pixels = (transform_image(marks, placement, number, flip)[:1] + 1) / 2
            expected = torch.nn.functional.avg_pool2d(pixels, 8)
            made = transform_mask(half_white(64, 16, 23), placement, number, flip, pixels_per_latent=8)
            torch.testing.assert_close(made, expected)


def test_a_mask_that_does_not_fit_is_refused() -> None:
    placement = placed(picture(640, 427), 64, 64)
    transform_mask(half_white(96, 64, 3), placement, pixels_per_latent=8)  # the same aspect ratio, rounded
    with pytest.raises(UserError, match="a mask is 427 x 640 pixels and has another shape than its image"):
        transform_mask(half_white(427, 640, 3), placement, pixels_per_latent=8)
    with pytest.raises(UserError, match="multiples of 24"):
        transform_mask(half_white(96, 64, 3), placement, pixels_per_latent=24)


def test_the_key_contains_everything_that_changes_the_pixels() -> None:
    image = picture(80, 30)
    placement = placed(image, 24, 24, crop_variants=3)
    middle = transform_key(placement)
    assert middle == (f"transform={TRANSFORM_VERSION} size=24x24 crop=0.5,0.5 flip=0 background=255,255,255")
    keys = {
        middle,
        transform_key(placement, 1),
        transform_key(placement, 2),
        transform_key(placement, 0, True),
        transform_key(placement, 0, False, (0, 0, 0)),
        transform_key(placed(image, 24, 32)),
        transform_key(placed(image, 32, 24)),
    }
    assert len(keys) == 7
    fitting = placed(picture(24, 24), 24, 24, crop_variants=2)  # a crop that cannot move is centered
    assert transform_key(fitting, 1) == transform_key(fitting, 0) == middle


GOLDEN = (1, "a012cdf5900365e8a9831cfe0cb04f959b0476c664124e9c02c5994354134b70")
"""The version and the hash of its output. If the test fails, increase TRANSFORM_VERSION and write both here."""


def test_the_version_changes_with_the_output() -> None:
    digest = hashlib.sha256()
    for size, (height, width) in (((90, 61), (24, 32)), ((37, 80), (32, 32)), ((10, 11), (16, 24))):
        image = picture(*size)
        middle = placed(image, height, width)
        down, right = middle.slack
        placement = replace(
            middle, crops=(*middle.crops, (down // 3, right // 3))
        )  # not drawn: torch may change
        for crop in (0, 1):
            for flip in (False, True):
                digest.update(transform_image(image, placement, crop, flip).numpy().tobytes())
                mask = transform_mask(image, placement, crop, flip, pixels_per_latent=8)
                digest.update(mask.numpy().tobytes())
    assert (TRANSFORM_VERSION, digest.hexdigest()) == GOLDEN

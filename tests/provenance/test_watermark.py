"""The watermark: what survives, what an unmarked image looks like to the detector, and that records know of it."""

import io
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ldm.errors import LdmWarning, UserError
from ldm.pipeline.record import encode_with_record
from ldm.provenance.image_report import provenance_of
from ldm.provenance.watermark import (
    NUM_BITS,
    THRESHOLD,
    Payload,
    detect,
    embed,
    groups,
    payload_of,
)
from tests.support.signatures import RECORD

PAYLOAD = Payload(0x1234, 0xABCD)


def scene(width: int = 320, height: int = 288, seed: int = 0) -> Image.Image:
    """Colours whose spectrum falls as 1 / f, as that of photographs does."""
    generator = np.random.default_rng(seed)
    f = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None, :])
    f[0, 0] = 1.0
    planes = [
        np.fft.ifft2(np.fft.fft2(generator.standard_normal((height, width))) / f).real for _ in range(3)
    ]
    pixels = 128 + 45 * np.stack([plane / plane.std() for plane in planes], axis=-1)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def marked() -> Image.Image:
    return embed(scene(), PAYLOAD)


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    with Image.open(buffer) as found:
        return found.convert("RGB")


def psnr(a: Image.Image, b: Image.Image) -> float:
    return 10 * math.log10(255**2 / float(np.mean((np.asarray(a, float) - np.asarray(b, float)) ** 2)))


def test_it_is_read_and_hardly_seen(marked: Image.Image) -> None:
    found = detect(marked, search=False)
    assert found.found and found.payload == PAYLOAD
    assert marked.size == scene().size and psnr(marked, scene()) > 36


ATTACKS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "JPEG at quality 50": lambda image: jpeg(image, 50),
    "half the size": lambda image: image.resize((160, 144)),
    "another shape": lambda image: image.resize((500, 300)),
    "a screenshot": lambda image: jpeg(image.resize((262, 239), Image.Resampling.BILINEAR), 75),
    "grey": lambda image: image.convert("L").convert("RGB"),
    "lighter": lambda image: image.point(lambda value: min(255, value * 1.2 + 5)),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_what_it_survives(marked: Image.Image, attack: str) -> None:
    found = detect(ATTACKS[attack](marked), search=False)
    assert found.found and found.payload == PAYLOAD


def test_a_search_finds_turned_and_cut_images(marked: Image.Image) -> None:
    turned = marked.rotate(-3, Image.Resampling.BICUBIC)
    assert not detect(turned, search=False).found
    found = detect(turned)
    assert found.found and found.payload == PAYLOAD and found.turned_deg == -3
    assert detect(marked.crop((4, 8, 308, 282))).found


def test_unmarked_images_are_standard_normal_to_the_detector() -> None:
    """Over keys that the images know nothing of."""
    image = scene(256, 256, 1)
    z = np.array([detect(image, search=False, key=b"key %d" % number).z for number in range(150)])
    assert abs(z.mean()) < 4 / math.sqrt(150) and abs(z.std() - 1) < 4 / math.sqrt(300)
    assert z.max() < THRESHOLD and not detect(image, search=False).found
    groups.cache_clear()


def test_a_wrong_checksum_says_nothing() -> None:
    bits = PAYLOAD.bits()
    assert len(bits) == NUM_BITS and Payload.from_bits(bits) == PAYLOAD
    for place in range(NUM_BITS):
        assert Payload.from_bits([bit ^ (number == place) for number, bit in enumerate(bits)]) is None


def test_a_flat_image_takes_one() -> None:
    flat = Image.new("RGB", (256, 256), (120, 160, 200))
    assert detect(embed(flat, PAYLOAD), search=False).payload == PAYLOAD
    assert not detect(flat, search=False).found


def test_an_image_that_cannot_hold_one_is_named() -> None:
    """Half of what is added to black and white pixels is cut off."""
    noise = np.random.default_rng(0).integers(0, 2, (256, 256, 1)) * 255
    with pytest.warns(LdmWarning, match="the watermark cannot be read in this image"):
        embed(Image.fromarray(noise.repeat(3, axis=2).astype(np.uint8)), PAYLOAD)


def test_small_images_are_refused() -> None:
    with pytest.raises(UserError, match="a watermark needs 256 x 256 pixels, and the image has 300 x 200"):
        embed(Image.new("RGB", (300, 200)), PAYLOAD)


def test_the_report_compares_it_with_the_record(tmp_path: Path) -> None:
    """Of another image, or of another model."""
    record = RECORD | {"watermark": True}
    image = embed(scene(), payload_of(record))
    for name, change, words in (
        ("a.png", {}, "as its record says"),
        ("b.png", {"seed": 8}, "which is NOT the image of its record"),
        ("c.png", {"versions": {"torch": "9"}}, "as its record says"),
    ):
        (tmp_path / name).write_bytes(encode_with_record(image, record | change))
        found = provenance_of(tmp_path / name)
        assert (
            f"; watermarked (model {0x0123 >> 2:04x}, image {payload_of(record).image:04x}), {words}"
            in found.line()
        )
        assert found.to_json()["watermark"]["found"] is True

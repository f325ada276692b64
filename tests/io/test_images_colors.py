"""Colours named by number (cICP in PNG, nclx in AVIF and HEIC), and HEIC itself."""

import io
import struct
import zlib
from importlib.util import find_spec

import numpy as np
import pytest
from PIL import Image

from ldm.data.decode_apart import decode_one
from ldm.data.sample import ImageInfo, Refusal
from ldm.errors import UserError
from ldm.io import images
from ldm.io.images import open_image, open_image_noted

# Linear Display P3 to linear sRGB, as published with CSS Color Module Level 4, section 18.
P3_TO_SRGB = [[1.22494, -0.22494, 0.0], [-0.042057, 1.042057, 0.0], [-0.019638, -0.078636, 1.098274]]
COLOR = (200, 100, 50)


def encoded(image: Image.Image, format: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def png(primaries: int, transfer: int, image: Image.Image | None = None) -> bytes:
    data = encoded(image or Image.new("RGB", (4, 4), COLOR), "PNG")
    body = b"cICP" + bytes([primaries, transfer, 0, 1])
    chunk = struct.pack(">I", 4) + body + struct.pack(">I", zlib.crc32(body))
    return data[:33] + chunk + data[33:]


def avif(primaries: int, transfer: int) -> bytes:
    data = encoded(Image.new("RGB", (16, 16), COLOR), "AVIF", quality=100, subsampling="4:4:4")
    place = data.index(b"colrnclx") + 8
    return data[:place] + struct.pack(">HH", primaries, transfer) + data[place + 4 :]


def p3_as_srgb(color: tuple[int, int, int]) -> np.ndarray:
    level = np.array(color) / 255
    light = np.where(level <= 0.04045, level / 12.92, ((level + 0.055) / 1.055) ** 2.4)
    light = (np.array(P3_TO_SRGB) @ light).clip(0, 1)
    return np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055) * 255


def off(data: bytes, expected: object) -> float:
    return float(np.abs(np.array(open_image(data).getpixel((1, 1)), dtype=float) - expected).max())


def test_display_p3_is_converted() -> None:
    assert off(png(12, 13), p3_as_srgb(COLOR)) <= 1 < off(png(1, 13), p3_as_srgb(COLOR))
    assert off(avif(12, 13), p3_as_srgb(COLOR)) <= 2
    clear = Image.new("RGBA", (4, 4), (*COLOR, 255))
    assert off(png(12, 13, clear), p3_as_srgb(COLOR)) <= 1
    assert off(png(12, 13, Image.new("L", (4, 4), 90)), 90) == 0  # white is D65 in both


def test_curves() -> None:
    assert off(png(1, 4), 255 * (1.055 * (np.array(COLOR) / 255) ** (2.2 / 2.4) - 0.055)) <= 1
    for same in ((1, 13), (1, 1), (2, 2), (6, 13)):
        assert off(png(*same), COLOR) <= (12 if same[0] == 6 else 0)


def test_hdr_is_refused_and_unknown_numbers_are_noted() -> None:
    for data in (png(9, 16), avif(9, 18)):
        with pytest.raises(UserError, match=r"an HDR image \((PQ|HLG)\): save it as SDR"):
            open_image(data)
    assert open_image_noted(png(11, 17))[1] == ["colours not used (H.273 primaries 11, transfer 17)"]
    damaged = bytearray(avif(12, 13))
    damaged[damaged.index(b"ipma") - 1] = 255
    assert images.cicp.read_cicp(bytes(damaged[:200]), "AVIF") in (None, (12, 13))


def heic() -> bytes:
    """The start of a HEIC file."""
    return b"\0\0\0\x18ftypheic" + bytes(64)


def test_heic_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "_reads_heif", lambda: False)
    with pytest.raises(UserError, match="need the package pillow-heif: pip install pillow-heif, or convert"):
        open_image(heic())


@pytest.mark.skipif(find_spec("pillow_heif") is None, reason="needs the extra heif")
def test_heic_is_read() -> None:
    from pillow_heif import from_pillow

    file = io.BytesIO()
    from_pillow(Image.new("RGB", (64, 32), COLOR)).save(file, quality=100)
    image = open_image(file.getvalue())
    assert image.size == (64, 32)
    assert np.abs(np.array(image, dtype=int) - COLOR).max() <= 4
    with pytest.raises(UserError, match="not an image in a known format"):
        open_image(heic())


class Encoded:
    """An image source in memory."""

    def __init__(self, data: bytes) -> None:
        self.data, self.name = data, "it"

    def read(self) -> bytes:
        return self.data

    def stamp(self) -> None:
        return None


def test_the_hash_of_a_converted_image_is_that_of_its_pixels() -> None:
    """A large image is shrunk before its colours are converted."""
    from PIL import ImageCms

    from ldm.data.duplicates import perceptual_hash

    noise = Image.effect_noise((320, 240), 80).convert("RGB")
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for data in (encoded(noise, "PNG", icc_profile=profile), png(12, 13, noise), encoded(noise, "JPEG")):
        found = decode_one(Encoded(data), {})
        assert isinstance(found, ImageInfo)
        assert (found.perceptual_hash ^ perceptual_hash(open_image(data))).bit_count() <= 2
    for black in (Image.new("RGB", (64, 64)), Image.new("RGB", (64, 64), (0, 0, 1))):
        found = decode_one(Encoded(encoded(black, "PNG")), {})
        assert isinstance(found, ImageInfo) and found.is_black
    black.putpixel((3, 3), (0, 9, 0))
    found = decode_one(Encoded(encoded(black, "PNG")), {})
    assert isinstance(found, ImageInfo) and not found.is_black
    assert isinstance(decode_one(Encoded(b"no"), {}), Refusal)

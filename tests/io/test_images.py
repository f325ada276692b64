"""Opening images of all formats with known pixels, and refusing bad ones."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from ldm.errors import UserError
from ldm.io.images import (
    open_image,
    open_image_noted,
)

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def quadrants() -> Image.Image:
    """4 x 2: left half red over green, right half blue over white."""
    image = Image.new("RGB", (4, 2))
    for x in range(4):
        image.putpixel((x, 0), RED if x < 2 else BLUE)
        image.putpixel((x, 1), GREEN if x < 2 else WHITE)
    return image


def pixels(image: Image.Image) -> list[list[tuple[int, ...]]]:
    return [[image.getpixel((x, y)) for x in range(image.width)] for y in range(image.height)]


def png(path: Path, width: int, height: int, depth: int, color_type: int, rows: bytes) -> Path:
    """A hand-made PNG, for bit depths that Pillow does not write."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, depth, color_type, 0, 0, 0)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + data)
    return path


# What a viewer must do for each EXIF orientation, in Pillow's terms; the inverse gives the file's pixels.
STORED = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@pytest.mark.parametrize("suffix", [".png", ".webp", ".tiff"])
@pytest.mark.parametrize("orientation", STORED)
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int, suffix: str) -> None:
    method = STORED[orientation]
    stored = quadrants() if method is None else quadrants().transpose(method)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"turned{suffix}"
    stored.save(path, exif=exif, **({"lossless": True} if suffix == ".webp" else {}))
    image, notes = open_image_noted(path)
    assert pixels(image) == pixels(quadrants())
    assert notes == []


def test_cmyk_without_a_profile(tmp_path: Path) -> None:
    Image.new("CMYK", (2, 2), (0, 255, 255, 0)).save(tmp_path / "a.tiff")
    assert open_image(tmp_path / "a.tiff").getpixel((0, 0)) == RED


def cmyk_profile() -> bytes:
    """A made-up printer: cyan prints black, the other inks print nothing (ICC.1:2001, lut8Type, Lab)."""
    identity = struct.pack(">9i", *(65536 * (i % 4 == 0) for i in range(9)))
    ramp = bytes(range(256))
    colors = b"".join(bytes([0 if corner & 8 else 255, 128, 128]) for corner in range(16))
    lut = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + identity + 4 * ramp + colors + 3 * ramp
    white = b"XYZ " + bytes(4) + struct.pack(">3i", 63190, 65536, 54061)
    start = 128 + 4 + 2 * 12
    tags = struct.pack(">I", 2)
    tags += b"A2B0" + struct.pack(">II", start, len(lut))
    tags += b"wtpt" + struct.pack(">II", start + len(lut), len(white))
    size = struct.pack(">I", start + len(lut) + len(white))
    head = size + bytes(4) + b"\x02\x10\0\0" + b"prtrCMYKLab " + bytes(12) + b"acsp"
    head = head.ljust(68, b"\0") + struct.pack(">3i", 63190, 65536, 54061)
    return head.ljust(128, b"\0") + tags + lut + white


def test_a_cmyk_profile_is_applied(tmp_path: Path) -> None:
    image = Image.new("CMYK", (2, 1), (0, 255, 255, 0))
    image.putpixel((1, 0), (255, 0, 0, 0))
    image.save(tmp_path / "a.tiff", icc_profile=cmyk_profile())
    opened, notes = open_image_noted(tmp_path / "a.tiff")
    assert notes == []
    assert pixels(opened) == [[WHITE, (0, 0, 0)]]


def test_an_rgb_profile_is_applied(tmp_path: Path) -> None:
    swapped = swap_red_and_green(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    quadrants().save(tmp_path / "a.png", icc_profile=swapped)
    image, notes = open_image_noted(tmp_path / "a.png")
    assert notes == []
    assert pixels(image)[0][0] == GREEN and pixels(image)[1][0] == RED


def swap_red_and_green(profile: bytes) -> bytes:
    """The same profile with the names of the red and green primaries swapped."""
    head, tags = profile[:128], profile[128:]
    tags = tags.replace(b"rXYZ", b"\0tmp").replace(b"gXYZ", b"rXYZ").replace(b"\0tmp", b"gXYZ")
    return head + tags


def test_a_transparent_image_keeps_its_profile(tmp_path: Path) -> None:
    swapped = swap_red_and_green(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    image = Image.new("RGBA", (2, 1), (255, 0, 0, 255))
    image.putpixel((1, 0), (255, 0, 0, 0))
    image.save(tmp_path / "a.png", icc_profile=swapped)
    assert pixels(open_image(tmp_path / "a.png")) == [[GREEN, WHITE]]


def test_an_srgb_profile_changes_nothing(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.fromarray(noise).save(tmp_path / "a.png", icc_profile=srgb)
    assert np.array_equal(np.asarray(open_image(tmp_path / "a.png")), noise)


def test_a_profile_that_does_not_fit_is_noted(tmp_path: Path) -> None:
    quadrants().save(tmp_path / "a.png", icc_profile=b"no profile")
    image, notes = open_image_noted(tmp_path / "a.png")
    assert pixels(image) == pixels(quadrants())
    assert len(notes) == 1 and notes[0].startswith("colour profile not used")


def test_16_bit_grey_is_scaled(tmp_path: Path) -> None:
    values = np.array([[0, 200, 257, 40000, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    Image.fromarray(values).save(tmp_path / "a.tiff")
    for name in ("a.png", "a.tiff"):
        assert [pixel[0] for pixel in pixels(open_image(tmp_path / name))[0]] == [0, 1, 1, 156, 255]


def test_16_bit_colour_is_scaled(tmp_path: Path) -> None:
    row = b"\0" + struct.pack(">6H", 65535, 40000, 0, 257, 65535, 12850)
    image = open_image(png(tmp_path / "a.png", 2, 1, 16, 2, row))
    expected = np.array([[255, 156, 0], [1, 255, 50]])
    assert np.abs(np.asarray(image)[0].astype(int) - expected).max() <= 1


def test_32_bit_values_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 70000]], dtype=np.int32)).save(tmp_path / "int.tiff")
    Image.fromarray(np.array([[0.0, 0.5]], dtype=np.float32)).save(tmp_path / "float.tiff")
    for name in ("int.tiff", "float.tiff"):
        with pytest.raises(UserError, match=f"{name}: .* no fixed range"):
            open_image(tmp_path / name)


@pytest.mark.parametrize(
    ("mode", "value", "expected"), [("L", 77, (77, 77, 77)), ("1", 255, WHITE), ("1", 0, (0, 0, 0))]
)
def test_grey_and_black_and_white(tmp_path: Path, mode: str, value: int, expected: tuple[int, ...]) -> None:
    Image.new(mode, (3, 2), value).save(tmp_path / "a.png")
    image = open_image(tmp_path / "a.png")
    assert image.mode == "RGB" and image.getpixel((2, 1)) == expected


def test_palette(tmp_path: Path) -> None:
    quadrants().quantize(4).save(tmp_path / "a.png")
    assert pixels(open_image(tmp_path / "a.png")) == pixels(quadrants())


@pytest.mark.parametrize("background", [WHITE, (0, 0, 0), (10, 200, 30)])
def test_transparency_is_composited_onto_the_background(
    tmp_path: Path, background: tuple[int, int, int]
) -> None:
    """The colour of a transparent pixel never shows; half transparent gives half of each colour."""
    rgba = Image.new("RGBA", (3, 1), (255, 0, 0, 255))
    rgba.putpixel((1, 0), (255, 0, 0, 0))
    rgba.putpixel((2, 0), (255, 0, 0, 128))
    rgba.save(tmp_path / "rgba.png")
    half = tuple(round((255 * 128 + under * 127) / 255) for under in (background[0],)) + tuple(
        round(under * 127 / 255) for under in background[1:]
    )
    row = pixels(open_image(tmp_path / "rgba.png", background=background))[0]
    assert row[:2] == [RED, background]
    assert all(abs(a - b) <= 1 for a, b in zip(row[2], half, strict=True))


def test_transparency_of_other_modes(tmp_path: Path) -> None:
    Image.new("LA", (1, 1), (9, 0)).save(tmp_path / "la.png")
    palette = Image.new("P", (2, 1), 0)
    palette.putpalette([255, 0, 0, 0, 255, 0])
    palette.putpixel((1, 0), 1)
    palette.save(tmp_path / "p.png", transparency=0)
    palette.save(tmp_path / "p.gif", transparency=0)
    Image.new("RGB", (1, 1), (1, 2, 3)).save(tmp_path / "rgb.png", transparency=(1, 2, 3))
    Image.new("L", (1, 1), 9).save(tmp_path / "l.png", transparency=9)
    Image.fromarray(np.array([[900, 65535]], dtype=np.uint16)).save(tmp_path / "i16.png", transparency=900)
    assert open_image(tmp_path / "la.png").getpixel((0, 0)) == WHITE
    assert open_image(tmp_path / "rgb.png").getpixel((0, 0)) == WHITE
    assert open_image(tmp_path / "l.png").getpixel((0, 0)) == WHITE
    for name in ("p.png", "p.gif"):
        assert pixels(open_image(tmp_path / name)) == [[WHITE, GREEN]]
    assert pixels(open_image(tmp_path / "i16.png", background=RED)) == [[RED, WHITE]]


@pytest.mark.parametrize("suffix", [".gif", ".png", ".webp"])
def test_the_first_frame_is_used_and_noted(tmp_path: Path, suffix: str) -> None:
    frames = [Image.new("RGB", (4, 4), color) for color in (RED, GREEN, BLUE)]
    path = tmp_path / f"a{suffix}"
    lossless = {"lossless": True} if suffix == ".webp" else {}
    frames[0].save(path, save_all=True, append_images=frames[1:], **lossless)
    image, notes = open_image_noted(path)
    assert image.getpixel((1, 1)) == RED
    assert notes == ["animated: first of 3 frames used"]


def test_pages_are_noted_but_not_a_phones_second_image(tmp_path: Path) -> None:
    first, second = Image.new("RGB", (8, 8), RED), Image.new("RGB", (8, 8), BLUE)
    first.save(tmp_path / "a.tiff", save_all=True, append_images=[second])
    first.save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=[second], quality=100)
    assert open_image_noted(tmp_path / "a.tiff")[1] == ["first of 2 pages used"]
    image, notes = open_image_noted(tmp_path / "a.jpg")
    assert notes == [] and image.getpixel((0, 0))[0] > 250


def write_bad(folder: Path) -> dict[str, str]:
    """Files that are not valid images, and part of the error message for each."""
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    names = {"cut.jpg": "truncated", "cut.png": "truncated", "cut.gif": "truncated", "cut.webp": "broken"}
    for name in names:
        Image.fromarray(noise).save(folder / name)
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: len(data) // 2])
    (folder / "empty.png").write_bytes(b"")
    (folder / "page.png").write_text("<html>not found</html>")
    (folder / "header.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (folder / "folder.png").mkdir()
    return names | {
        "empty.png": "the file is empty",
        "page.png": "not an image",
        "header.png": "broken",
        "folder.png": "[Dd]irectory",
        "absent.png": "No such file",
    }


def test_bad_files_are_refused_by_name(tmp_path: Path) -> None:
    for name, reason in write_bad(tmp_path).items():
        with pytest.raises(UserError, match=f"{name}: .*{reason}") as error:
            open_image(tmp_path / name)
        assert error.value.hint and "\n" not in str(error.value)


def test_a_bomb_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    """The pixel data is missing, so reading any would give a different error."""
    for size in (12_000, 30_000):
        path = png(tmp_path / "bomb.png", size, size, 8, 2, b"")
        with pytest.raises(UserError, match=r"bomb.png: too large .*: shrink it to at most 89 megapixels"):
            open_image(path)


def test_max_pixels(tmp_path: Path) -> None:
    quadrants().save(tmp_path / "a.png")
    assert open_image(tmp_path / "a.png", max_pixels=8).size == (4, 2)
    with pytest.raises(UserError, match="4 x 2 pixels"):
        open_image(tmp_path / "a.png", max_pixels=7)


def test_a_text_bomb_is_refused(tmp_path: Path) -> None:
    path = png(tmp_path / "a.png", 1, 1, 8, 0, b"\0\0")
    text = b"a\0\0" + zlib.compress(bytes(70_000_000))
    chunk = struct.pack(">I", len(text)) + b"zTXt" + text + struct.pack(">I", zlib.crc32(b"zTXt" + text))
    data = path.read_bytes()
    path.write_bytes(data[:33] + chunk + data[33:])
    with pytest.raises(UserError, match=r"a\.png: broken image"):
        open_image(path)


def test_eps_is_not_opened(tmp_path: Path) -> None:
    """Pillow would start Ghostscript for it."""
    (tmp_path / "a.png").write_text(
        "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
    )
    with pytest.raises(UserError, match="not an image in a known format"):
        open_image(tmp_path / "a.png")

"""Images: open any image file safely, resize and crop, convert to a tensor and back, arrange in a grid.

Axis letters: B batch, H W pixels. Pixel tensors are RGB in [-1, 1].
"""

import io
import os
import threading
import warnings
from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from importlib.util import find_spec
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageCms, ImageDraw, ImageFont, ImageOps, UnidentifiedImageError

from ldm.errors import UserError
from ldm.io import cicp
from ldm.io.opening import MAX_IMAGE_BYTES, open_file, read_bytes

if TYPE_CHECKING:
    from torch import Tensor

Color = tuple[int, int, int]
WHITE: Color = (255, 255, 255)

MAX_PIXELS = 89_478_485
"""The largest image that is opened, in pixels (256 MiB as RGB)."""

IMAGE_SUFFIXES = frozenset({
    ".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif", ".jp2", ".ppm",
    ".heic", ".heif",  # with the package pillow-heif
})  # fmt: skip
UNREADABLE_SUFFIXES = frozenset({
    ".jxl", ".svg", ".psd", ".tga", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".rw2", ".orf", ".raf",
})  # fmt: skip

# Pillow supports more formats, some of which start other programs (EPS runs Ghostscript).
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "AVIF", "JPEG2000", "PPM", "HEIF")
_WITH_CICP = ("PNG", "AVIF", "HEIF")
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_SAVE_AGAIN = "save it again as PNG or JPEG, or take it out"  # part of data reports, which must not change
_LETTER_PX = 9
_LONGEST_CAPTION = 120
_CAPTION_PX = 2 * (_LETTER_PX + 1) + 2
_warning_lock = threading.Lock()


def open_image(
    file: str | os.PathLike[str] | bytes | Image.Image,
    *,
    name: str | None = None,
    background: Color = WHITE,
    max_pixels: int = MAX_PIXELS,
) -> Image.Image:
    """The image in a file as RGB, fully decoded, upright, with transparency composited onto `background`.

    Args:
        file: its path, its bytes, or an image in memory, which is converted in the same way.
        name: its name in messages; by default the path.

    Raises:
        UserError: the file is missing, unreadable, not an image, broken, truncated or above `max_pixels`.
    """
    return open_image_noted(file, name=name, background=background, max_pixels=max_pixels)[0]


def open_image_noted(
    file: str | os.PathLike[str] | bytes | Image.Image,
    *,
    name: str | None = None,
    background: Color = WHITE,
    max_pixels: int = MAX_PIXELS,
) -> tuple[Image.Image, list[str]]:
    """Like `open_image`, with notes on what was ignored in the file, such as "first of 12 frames used"."""
    image, notes = decode_image(file, name=name, max_pixels=max_pixels)
    image, color_notes = to_srgb(image)
    return _flatten(image, background), notes + color_notes


def decode_image(
    file: str | os.PathLike[str] | bytes | Image.Image,
    *,
    name: str | None = None,
    max_pixels: int = MAX_PIXELS,
) -> tuple[Image.Image, list[str]]:
    """An image fully decoded and upright, in its own colours, and notes on what was ignored in the file.

    Its mode is L, RGB, RGBA or CMYK. `to_srgb` converts it; large images that are only looked at can be shrunk before.

    Raises:
        UserError: as `open_image`.
    """
    name = name or _name_of(file)
    image, notes = _decode(file, name, max_pixels)
    if image.mode == "F" or image.mode == "LAB":
        raise UserError(f"{name}: pixels of type {image.mode} have no fixed range", _SAVE_AGAIN)
    image = _to_8_bit(image, name)
    if image.has_transparency_data:
        image = _as_mode(image, "RGBA")
    elif image.mode not in ("L", "RGB", "CMYK"):
        image = image.convert("RGB")
    return image, notes


def _as_mode(image: Image.Image, mode: str) -> Image.Image:
    """The image in a mode; `Image.convert` would copy one that has it already."""
    return image if image.mode == mode else image.convert(mode)


def open_alpha(
    file: str | os.PathLike[str] | bytes | Image.Image,
    *,
    name: str | None = None,
    max_pixels: int = MAX_PIXELS,
) -> Image.Image:
    """The transparency of an image as a grey image, 255 where it is opaque, upright as from `open_image`.

    Raises:
        UserError: as `open_image`.
    """
    name = name or _name_of(file)
    image = _to_8_bit(_decode(file, name, max_pixels)[0], name)
    if not image.has_transparency_data:
        return Image.new("L", image.size, 255)
    return image.convert("RGBA").getchannel("A")


def open_grey(
    file: str | os.PathLike[str] | bytes, *, name: str | None = None, max_pixels: int = MAX_PIXELS
) -> tuple[Image.Image, int] | None:
    """A single-channel image at its own depth, upright, in mode F in [0, 1], and its bits (8 or 16); else None.

    None is also for grey images with transparency or a colour profile, which only `open_image` applies.

    Raises:
        UserError: as `open_image`.
    """
    name = name or _name_of(file)
    image, _ = _decode(file, name, max_pixels)
    coloured = image.has_transparency_data or image.info.get("icc_profile") or image.info.get("cicp")
    if coloured or not (image.mode == "L" or image.mode.startswith("I")):
        return None
    _to_8_bit(image, name)  # refuses values beyond 16 bits
    bits = 8 if image.mode == "L" else 16
    values = np.asarray(image).astype(np.float64) / (2**bits - 1)
    return Image.fromarray(values.astype(np.float32)), bits


def has_deep_colour(data: bytes) -> bool:
    """Whether the bytes are a PNG with 16 bits per colour channel, of which only 8 are read here."""
    return data[:8] == b"\x89PNG\r\n\x1a\n" and data[24:25] == b"\x10" and data[25:26] in (b"\x02", b"\x06")


def _name_of(file: str | os.PathLike[str] | bytes | Image.Image) -> str:
    return "the image" if isinstance(file, bytes | Image.Image) else os.fspath(file)


def _decode(
    file: str | os.PathLike[str] | bytes | Image.Image, name: str, max_pixels: int
) -> tuple[Image.Image, list[str]]:
    """The first frame in the file's mode, loaded and upright, with notes."""
    if isinstance(file, Image.Image):
        return _upright(file, name, max_pixels), []
    try:
        with (
            io.BytesIO(file) if isinstance(file, bytes) else open_file(file, MAX_IMAGE_BYTES) as data,
            _open_quietly(data) as image,
        ):
            _check_size(image, name, max_pixels)
            _parse_exif_quietly(image)
            notes = _frame_notes(image)
            code = cicp.read_cicp(_bytes_of(file), image.format) if image.format in _WITH_CICP else None
            if code and code[1] in cicp.HDR:
                kind = cicp.HDR[code[1]]
                raise UserError(f"{name}: an HDR image ({kind})", "save it as SDR, in sRGB or Display P3")
            ImageOps.exif_transpose(image, in_place=True)
            if code and not (image.format != "PNG" and image.info.get("icc_profile")):
                image.info["cicp"] = code
            return image, notes
    except UserError:
        raise
    except Image.DecompressionBombError as error:
        raise _too_large(name, str(error), max_pixels) from error
    except OSError as error:
        if error.errno is None:  # a decoder's
            raise _undecodable(file, name, error) from error
        raise UserError(f"{name}: {error.strerror}", "name a readable image file") from error
    except Exception as error:  # decoders raise nearly anything on bad data
        raise _undecodable(file, name, error) from error


def _undecodable(file: str | os.PathLike[str] | bytes, name: str, error: Exception) -> UserError:
    if not _reads_heif() and _is_heif(file):
        return UserError(
            f"{name}: HEIC images need the package pillow-heif",
            "pip install pillow-heif, or convert the image to JPEG",
        )
    return UserError(f"{name}: {_reason(file, error)}", _SAVE_AGAIN)


def _upright(image: Image.Image, name: str, max_pixels: int) -> Image.Image:
    """A loaded copy, turned as its EXIF data says."""
    _check_size(image, name, max_pixels)
    _parse_exif_quietly(image)
    return ImageOps.exif_transpose(image)


def _check_size(image: Image.Image, name: str, max_pixels: int) -> None:
    if image.width * image.height > max_pixels:
        raise _too_large(name, f"{image.width} x {image.height} pixels", max_pixels)


def _open_quietly(file: io.BytesIO | io.BufferedReader) -> Image.Image:
    """Read the header only, without Pillow's warnings: images that are too large or odd are refused here."""
    with _warning_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Image.open(file, formats=_formats())


@cache
def _formats() -> tuple[str, ...]:
    """The formats of `_FORMATS` that can be read here."""
    _reads_heif()
    there = set(Image.registered_extensions().values())
    return tuple(name for name in _FORMATS if name in there)


@cache
def _reads_heif() -> bool:
    """Whether HEIC images can be read: the package pillow-heif is installed and works."""
    if find_spec("pillow_heif") is None:
        return False
    try:
        from pillow_heif import register_heif_opener
    except ImportError:  # built for another system
        return False
    register_heif_opener(thumbnails=False)
    return True


def _is_heif(file: str | os.PathLike[str] | bytes) -> bool:
    start = _bytes_of(file)[:12]
    return start[4:8] == b"ftyp" and start[8:12] in _HEIF_BRANDS


def _bytes_of(file: str | os.PathLike[str] | bytes) -> bytes:
    return file if isinstance(file, bytes) else read_bytes(file, MAX_IMAGE_BYTES)


def _parse_exif_quietly(image: Image.Image) -> None:
    """Parse truncated EXIF data without a warning; the part that could be read is used."""
    if "exif" in image.info:
        with _warning_lock, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image.getexif()


def _too_large(name: str, what: str, max_pixels: int) -> UserError:
    return UserError(f"{name}: too large ({what})", f"shrink it to at most {max_pixels / 1e6:.0f} megapixels")


def _reason(file: str | os.PathLike[str] | bytes, error: Exception) -> str:
    if (len(file) if isinstance(file, bytes) else os.stat(file).st_size) == 0:
        return "the file is empty"
    if isinstance(error, UnidentifiedImageError):
        return "not an image in a known format, or its header is broken"
    return f"broken image ({error or type(error).__name__})"


def _frame_notes(image: Image.Image) -> list[str]:
    """Notes on a file with several images; the second image in a phone's MPO file does not count as a frame."""
    num_frames = getattr(image, "n_frames", 1)
    if num_frames == 1 or image.format == "MPO":
        return []
    if image.format == "TIFF":
        return [f"first of {num_frames} pages used"]
    return [f"animated: first of {num_frames} frames used"]


def _to_8_bit(image: Image.Image, name: str) -> Image.Image:
    """Convert 16-bit grey values v to round(v / 257); Pillow's own conversion clips them at 255."""
    if not image.mode.startswith("I"):
        return image
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise UserError(f"{name}: 32-bit grey values have no fixed range", _SAVE_AGAIN)
    grey = Image.fromarray(((values + 128) // 257).astype(np.uint8))
    grey.info = {key: value for key, value in image.info.items() if key != "transparency"}
    clear = image.info.get("transparency")
    if isinstance(clear, int):
        grey.putalpha(Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8)))
    return grey


def to_srgb(image: Image.Image) -> tuple[Image.Image, list[str]]:
    """Convert an image from the colours that its file names; what does not fit the pixels is ignored, with a note.

    The file names them by numbers (cICP or nclx) or by an ICC profile.
    """
    code, data = image.info.get("cicp"), image.info.get("icc_profile")
    mode = "RGBA" if image.mode == "RGBA" else "RGB"
    if code:
        if not cicp.is_known(*code):
            return image, [f"colours not used (H.273 primaries {code[0]}, transfer {code[1]})"]
        return cicp.to_srgb(_as_mode(image, mode), *code), []
    if not data:
        return image, []
    try:
        return _srgb_transform(data, image.mode, mode).apply(image), []
    except (ImageCms.PyCMSError, OSError, ValueError) as error:
        return image, [f"colour profile not used ({error})"]


@lru_cache(maxsize=4)  # a folder has few profiles, and each stays in memory
def _srgb_transform(icc_profile: bytes, mode: str, output_mode: str) -> ImageCms.ImageCmsTransform:
    """From the colours of a profile to sRGB. Making one takes longer than using it on a small image."""
    profile = ImageCms.ImageCmsProfile(io.BytesIO(icc_profile))
    return ImageCms.buildTransform(profile, ImageCms.createProfile("sRGB"), mode, output_mode)


def _flatten(image: Image.Image, background: Color) -> Image.Image:
    if image.mode != "RGBA":
        return _as_mode(image, "RGB")
    under = Image.new("RGBA", image.size, (*background, 255))
    return Image.alpha_composite(under, image).convert("RGB")


def resize_and_crop(
    image: Image.Image,
    height: int,
    width: int,
    *,
    crop: tuple[float, float] = (0.5, 0.5),
    resampling: Image.Resampling = Image.Resampling.LANCZOS,
) -> Image.Image:
    """Scale the image to cover height x width, antialiased unless by nearest neighbour, then crop the rest.

    Args:
        crop: position of the crop as fractions (vertical, horizontal): 0 keeps the top or left, 1 the bottom or right.
    """
    box_width = min(float(image.width), image.height * width / height)
    box_height = min(float(image.height), image.width * height / width)
    top, left = crop[0] * (image.height - box_height), crop[1] * (image.width - box_width)
    box = (left, top, min(left + box_width, image.width), min(top + box_height, image.height))
    return image.resize((width, height), resampling, box=box)


def image_to_tensor(image: Image.Image) -> "Tensor":
    """RGB image -> pixel_values [3, H, W], float32 in [-1, 1]."""
    import torch

    pixels = np.asarray(image.convert("RGB"), dtype=np.float32) / 255.0
    return torch.from_numpy(2.0 * pixels - 1.0).permute(2, 0, 1).contiguous()


def tensor_to_images(pixel_values: "Tensor") -> list[Image.Image]:
    """pixel_values [B, 3, H, W] in [-1, 1] -> B RGB images; values outside are clamped, halves round to even.

    Raises:
        UserError: a value is NaN or infinite; it would become black.
    """
    if not pixel_values.isfinite().all():
        raise UserError("the decoded image contains NaN or infinite values", "use dtype float32")
    unit = (pixel_values.detach() * 0.5 + 0.5).clamp(0, 1)
    array = unit.float().permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(image) for image in (array * 255).round().astype(np.uint8)]


def image_grid(
    images: Sequence[Image.Image],
    num_columns: int,
    *,
    gap_px: int = 2,
    background: Color = WHITE,
    captions: Sequence[str] | None = None,
) -> Image.Image:
    """The images in rows of `num_columns`, each with its caption below in small letters (at most two lines).

    Raises:
        ValueError: there are no images, or the number of captions differs from the number of images.
    """
    if not images or (captions is not None and len(captions) != len(images)):
        raise ValueError(f"{len(images)} images with {len(captions or images)} captions cannot form a grid")
    width = max(image.width for image in images)
    image_height = max(image.height for image in images)
    height = image_height + (_CAPTION_PX if captions else 0)
    num_rows = -(-len(images) // num_columns)
    size = (num_columns * (width + gap_px) + gap_px, num_rows * (height + gap_px) + gap_px)
    grid = Image.new("RGB", size, background)
    for index, image in enumerate(images):
        row, column = divmod(index, num_columns)
        left, top = gap_px + column * (width + gap_px), gap_px + row * (height + gap_px)
        grid.paste(image, (left, top))
        if captions:
            _draw_caption(grid, captions[index], left, top + image_height, width)
    return grid


def _draw_caption(grid: Image.Image, caption: str, left: int, top: int, width: int) -> None:
    """Draw two lines of text, each cut at `width` pixels, in black or white to contrast with the background."""
    caption = " ".join(caption.split())[:_LONGEST_CAPTION]
    draw, font = ImageDraw.Draw(grid), ImageFont.load_default(size=_LETTER_PX)
    ink: Color = (0, 0, 0) if sum(_pixel(grid, left, top)) > 382 else WHITE
    for line in range(2):
        fitting = _fitting_words(caption, lambda text: draw.textlength(text, font=font) <= width)
        draw.text((left, top + line * (_LETTER_PX + 1)), fitting, fill=ink, font=font)
        caption = caption[len(fitting) :].lstrip()


def _pixel(image: Image.Image, left: int, top: int) -> Color:
    value = image.getpixel((left, top))
    assert isinstance(value, tuple)
    return value[0], value[1], value[2]


def _fitting_words(text: str, fits: Callable[[str], bool]) -> str:
    """The longest beginning that fits, ending between words if possible."""
    length = next((n for n in range(len(text), 0, -1) if fits(text[:n])), 0)
    if length == len(text):
        return text
    space = text.rfind(" ", 0, length + 1)
    return text[: space if space > 0 else length]

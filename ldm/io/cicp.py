"""Colours that a file names by number instead of an ICC profile: `cICP` in PNG, `nclx` in AVIF and HEIC.

The numbers are those of ITU-T H.273, sections 8.1 (primaries) and 8.2 (transfer characteristics). All primaries here
have the white point D65, so that no adaptation is needed. Video curves (BT.709, BT.2020) are taken for sRGB's, as they
are shown by browsers.
"""

import struct
from collections.abc import Iterator
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

UNSPECIFIED, SRGB = 2, (1, 13)
HDR = {16: "PQ", 18: "HLG"}
"""Transfer characteristics that have no counterpart in eight-bit sRGB."""

_PRIMARIES = {
    1: ((0.640, 0.330), (0.300, 0.600), (0.150, 0.060)),  # BT.709, sRGB
    5: ((0.640, 0.330), (0.290, 0.600), (0.150, 0.060)),  # BT.601, 625 lines
    6: ((0.630, 0.340), (0.310, 0.595), (0.155, 0.070)),  # BT.601, 525 lines
    7: ((0.630, 0.340), (0.310, 0.595), (0.155, 0.070)),  # SMPTE 240M
    9: ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046)),  # BT.2020
    12: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060)),  # Display P3
    22: ((0.630, 0.340), (0.295, 0.605), (0.155, 0.077)),  # EBU Tech. 3213
}
_WHITE = (0.3127, 0.3290)
_GAMMAS = {4: 2.2, 5: 2.8, 8: 1.0}
_LIKE_SRGB = (1, 2, 6, 13, 14, 15)
_NUM_ROWS = 256

_Floats = NDArray[np.float64]


def is_known(primaries: int, transfer: int) -> bool:
    """Whether `to_srgb` can convert these colours."""
    return primaries in (*_PRIMARIES, UNSPECIFIED) and transfer in (*_LIKE_SRGB, *_GAMMAS)


def to_srgb(image: Image.Image, primaries: int, transfer: int) -> Image.Image:
    """An RGB or RGBA image in sRGB; colours outside of it are clipped.

    Args:
        primaries: as H.273 numbers them, and known; so is `transfer`.
    """
    like_srgb = transfer in _LIKE_SRGB
    if like_srgb and primaries in (1, UNSPECIFIED):
        return image
    linear = _srgb_to_linear() if like_srgb else (np.arange(256) / 255) ** _GAMMAS[transfer]
    matrix = np.linalg.inv(_to_xyz(1)) @ _to_xyz(1 if primaries == UNSPECIFIED else primaries)
    pixels = np.array(image)
    for start in range(0, len(pixels), _NUM_ROWS):
        colors = pixels[start : start + _NUM_ROWS, :, :3]
        colors[...] = _encode(linear[colors] @ matrix.T)
    return Image.fromarray(pixels)


@cache
def _srgb_to_linear() -> _Floats:
    """The light of each level 0 to 255, IEC 61966-2-1."""
    level = np.arange(256) / 255
    return np.where(level <= 0.04045, level / 12.92, ((level + 0.055) / 1.055) ** 2.4)


def _encode(light: _Floats) -> NDArray[np.uint8]:
    """Light as sRGB levels."""
    light = light.clip(0, 1)
    level = np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)
    return (level * 255).round().astype(np.uint8)


def _to_xyz(primaries: int) -> _Floats:
    """The matrix [3, 3] from linear RGB to XYZ (SMPTE RP 177)."""
    columns = np.array([[x / y, 1.0, (1 - x - y) / y] for x, y in _PRIMARIES[primaries]]).T
    x, y = _WHITE
    weights = np.linalg.solve(columns, np.array([x / y, 1.0, (1 - x - y) / y]))
    return np.asarray(columns * weights)


def read_cicp(data: bytes, format: str | None) -> tuple[int, int] | None:
    """(primaries, transfer) that a PNG, AVIF or HEIF file names; None if it names none."""
    try:
        return _of_png(data) if format == "PNG" else _of_heif(data)
    except (struct.error, IndexError):  # a damaged file: the decoder says what is wrong with it
        return None


def _of_png(data: bytes) -> tuple[int, int] | None:
    """From the chunk cICP, which comes before the pixels (PNG, third edition, 11.3.2.6)."""
    place = 8
    while place + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, place)
        if kind == b"cICP":
            return data[place + 8], data[place + 9]
        if kind == b"IDAT":
            return None
        place += length + 12
    return None


def _of_heif(data: bytes) -> tuple[int, int] | None:
    """From a property `colr` of type nclx, that of the primary item if one is told (ISO/IEC 23008-12, 6.5.5)."""
    boxes = dict(_boxes(data, 0, len(data)))
    if b"meta" not in boxes:
        return None
    start, end = boxes[b"meta"]
    meta = dict(_boxes(data, start + 4, end))
    properties = dict(_boxes(data, *meta[b"iprp"])) if b"iprp" in meta else {}
    if b"ipco" not in properties:
        return None
    every = list(_boxes(data, *properties[b"ipco"]))
    own = _primary_properties(data, meta, properties)
    chosen = [every[index - 1] for index in own if 0 < index <= len(every)] if own else every
    for kind, (place, _) in chosen:
        if kind == b"colr" and data[place : place + 4] == b"nclx":
            primaries, transfer = struct.unpack_from(">HH", data, place + 4)
            return primaries, transfer
    return None


_Span = tuple[int, int]


def _boxes(data: bytes, start: int, end: int) -> Iterator[tuple[bytes, _Span]]:
    """The kind of each box, and where its contents are."""
    while start + 8 <= end:
        size, kind = struct.unpack_from(">I4s", data, start)
        body = start + 8
        if size == 1:
            (size,) = struct.unpack_from(">Q", data, body)
            body += 8
        stop = end if size == 0 else start + size
        if not body <= stop <= end:
            return
        yield kind, (body, stop)
        start = stop


def _primary_properties(data: bytes, meta: dict[bytes, _Span], properties: dict[bytes, _Span]) -> list[int]:
    """The numbers, from 1, of the properties of the primary item; empty if the file does not say."""
    if b"pitm" not in meta or b"ipma" not in properties:
        return []
    place = meta[b"pitm"][0]
    (primary,) = struct.unpack_from(">H" if data[place] == 0 else ">I", data, place + 4)
    place = properties[b"ipma"][0]
    item_size, wide = (2 if data[place] < 1 else 4), data[place + 3] & 1
    (num_items,) = struct.unpack_from(">I", data, place + 4)
    place += 8
    for _ in range(num_items):
        (item,) = struct.unpack_from(">H" if item_size == 2 else ">I", data, place)
        count = data[place + item_size]
        place += item_size + 1
        kind, size, mask = (">H", 2, 0x7FFF) if wide else (">B", 1, 0x7F)
        found = [struct.unpack_from(kind, data, place + size * each)[0] & mask for each in range(count)]
        if item == primary:
            return found
        place += size * count
    return []

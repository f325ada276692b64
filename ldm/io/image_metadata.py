"""What a PNG, JPEG or WebP says besides its pixels: texts, XMP, EXIF, IPTC and C2PA credentials.

Only the headers of its parts and the parts asked for are read. A part that is damaged is left out: what is read here is
never needed to decode an image.
"""

import hashlib
import io
import os
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import BinaryIO, Literal

from ldm.io.opening import MAX_IMAGE_BYTES, open_file
from ldm.io.xmp import xmp_properties

ImageFormat = Literal["png", "jpeg", "webp"]

XMP_KEY = "XML:com.adobe.xmp"
"""The text chunk of a PNG that holds its XMP packet."""
COMMENT_KEY = "Comment"
"""The text chunk of a PNG, and the name here of a JPEG's comment, that says in words what the image is."""

JPEG_XMP = b"http://ns.adobe.com/xap/1.0/\0"
JPEG_MORE_XMP = b"http://ns.adobe.com/xmp/extension/\0"
JPEG_EXIF = b"Exif\0\0"
JPEG_IPTC = b"Photoshop 3.0\0"
"""How the application segments of a JPEG begin that hold metadata."""

MAX_METADATA_BYTES = 2**24
"""The longest part that is read; a longer one is left out, and texts that follow this many letters of others."""

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_PARTS = (b"tEXt", b"zTXt", b"iTXt", b"eXIf", b"caBX")
_WEBP_PARTS = (b"EXIF", b"XMP ", b"C2PA")
_WEBP_IMAGE = (b"VP8 ", b"VP8L", b"ALPH", b"ANMF")
_SOI, _SOS, _EOI, _COM, _APP1, _APP11, _APP13 = 0xD8, 0xDA, 0xD9, 0xFE, 0xE1, 0xEB, 0xED
_ALONE = frozenset({0x01, *range(0xD0, 0xD8)})
"""Markers of a JPEG without a length."""


@dataclass(frozen=True)
class ImageMetadata:
    """The metadata of one file, each part as it stands there, empty if there is none.

    Attributes:
        format: None for a file that is not a PNG, JPEG or WebP.
        texts: of a PNG by key; a JPEG's comment has the key `COMMENT_KEY`.
        more_xmp: the second packet of a JPEG whose XMP does not fit into one segment.
        c2pa: the JUMBF box of C2PA credentials.
    """

    format: ImageFormat | None = None
    texts: Mapping[str, str] = field(default_factory=dict)
    xmp: bytes = b""
    more_xmp: bytes = b""
    exif: bytes = b""
    iptc: bytes = b""
    c2pa: bytes = b""

    @cached_property
    def properties(self) -> dict[str, str]:
        """The XMP properties, named as `prefix:name`."""
        return xmp_properties(self.xmp) | xmp_properties(self.more_xmp)


def read_metadata(source: str | os.PathLike[str] | bytes) -> ImageMetadata:
    """The metadata of an image file, or of its bytes; of a file that is cut off, what is left of it.

    Raises:
        OSError: as `open_file`.
    """
    with io.BytesIO(source) if isinstance(source, bytes) else open_file(source, MAX_IMAGE_BYTES) as file:
        start = file.read(12)
        if start.startswith(_PNG):
            return _of_png(file)
        if start.startswith(b"\xff\xd8\xff"):
            return _of_jpeg(file)
        if start[:4] == b"RIFF" and start[8:] == b"WEBP":
            return _of_webp(file)
    return ImageMetadata()


def image_format(path: str | os.PathLike[str]) -> ImageFormat | None:
    """What a file is by its first bytes; None for any other format.

    Raises:
        OSError: as `open_file`.
    """
    with open_file(path, MAX_IMAGE_BYTES) as file:
        return read_metadata(file.read(12)).format


def _part(file: BinaryIO, length: int, *, wanted: bool) -> bytes | None:
    """The next `length` bytes; None if they are passed over, unwanted or too many."""
    if wanted and length <= MAX_METADATA_BYTES:
        return file.read(length)
    file.seek(length, os.SEEK_CUR)
    return None


def _of_png(file: BinaryIO) -> ImageMetadata:
    texts: dict[str, str] = {}
    parts: dict[bytes, bytes] = {}
    unpacked = 0
    for kind, data in _png_chunks(file):
        if kind in (b"eXIf", b"caBX"):
            parts[kind] = data
        elif unpacked <= MAX_METADATA_BYTES:
            key, text = png_text(kind, data)
            texts[key] = text
            unpacked += len(text)
    xmp = texts.get(XMP_KEY, "").encode("utf-8", "replace")
    return ImageMetadata("png", texts, xmp, exif=parts.get(b"eXIf", b""), c2pa=parts.get(b"caBX", b""))


def _png_chunks(file: BinaryIO) -> Iterator[tuple[bytes, bytes]]:
    file.seek(len(_PNG))
    while len(header := file.read(8)) == 8 and header[4:] != b"IEND":
        data = _part(file, int.from_bytes(header[:4], "big"), wanted=header[4:] in _PNG_PARTS)
        if data is not None:
            yield header[4:], data
        file.seek(4, os.SEEK_CUR)  # the checksum


def png_text(kind: bytes, data: bytes) -> tuple[str, str]:
    """The key and the text of a text chunk."""
    key, _, value = data.partition(b"\0")
    if kind == b"iTXt":
        is_packed, value = value[:1] == b"\1", value[2:].split(b"\0", 2)[-1]
        raw = _unpacked(value) if is_packed else value
        return key.decode("latin-1"), raw.decode("utf-8", "replace")
    raw = _unpacked(value[1:]) if kind == b"zTXt" else value
    return key.decode("latin-1"), raw.decode("latin-1")


def _unpacked(data: bytes) -> bytes:
    try:
        return zlib.decompressobj().decompress(data, MAX_METADATA_BYTES)
    except zlib.error:
        return data


def _of_jpeg(file: BinaryIO) -> ImageMetadata:
    found: dict[str, bytes] = {}
    more_xmp: dict[int, bytes] = {}
    boxes: dict[bytes, dict[int, bytes]] = {}
    for marker, data in jpeg_segments(file):
        if marker == _COM:
            found.setdefault("comment", data)
        elif marker == _APP11 and data[:2] == b"JP" and len(data) >= 8:
            boxes.setdefault(data[2:4], {})[int.from_bytes(data[4:8], "big")] = data[8:]
        elif marker == _APP13 and data.startswith(JPEG_IPTC):
            found.setdefault("iptc", data[len(JPEG_IPTC) :])
        elif marker == _APP1 and data.startswith(JPEG_MORE_XMP):
            offset = int.from_bytes(data[len(JPEG_MORE_XMP) + 36 :][:4], "big")
            more_xmp[offset] = data[len(JPEG_MORE_XMP) + 40 :]
        elif marker == _APP1 and data.startswith(JPEG_XMP):
            found.setdefault("xmp", data[len(JPEG_XMP) :])
        elif marker == _APP1 and data.startswith(JPEG_EXIF):
            found.setdefault("exif", data[len(JPEG_EXIF) :])
    texts = {COMMENT_KEY: found["comment"].decode("utf-8", "replace")} if "comment" in found else {}
    whole = {number: _joined(parts) for number, parts in boxes.items()}
    c2pa = next((box for box in whole.values() if b"c2pa" in box[:64]), b"")
    more = b"".join(more_xmp[offset] for offset in sorted(more_xmp))
    named = {name: found.get(name, b"") for name in ("xmp", "exif", "iptc")}
    return ImageMetadata("jpeg", texts, more_xmp=more, c2pa=c2pa, **named)


def _joined(parts: Mapping[int, bytes]) -> bytes:
    """A JUMBF box from its segments: each after the first repeats the header of the box, 8 bytes."""
    first, *others = (parts[number] for number in sorted(parts))
    return first + b"".join(other[8:] for other in others)


def jpeg_segments(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """The marker and the content of each segment that holds metadata, up to the image data."""
    file.seek(2)
    while file.read(1) == b"\xff":
        while (code := file.read(1)) == b"\xff":  # padding
            pass
        marker = int.from_bytes(code, "big")
        if marker in _ALONE:
            continue
        length = int.from_bytes(file.read(2), "big") - 2
        if marker in (0, _SOS, _EOI) or length < 0:
            return
        data = _part(file, length, wanted=is_metadata(marker))
        if data is not None:
            yield marker, data


def is_metadata(marker: int) -> bool:
    """Whether a JPEG's segment says nothing about its pixels: an application's, or a comment."""
    return marker in (_APP1, _APP11, _APP13, _COM)


def _of_webp(file: BinaryIO) -> ImageMetadata:
    parts: dict[bytes, bytes] = {}
    file.seek(12)
    while len(header := file.read(8)) == 8:
        length = int.from_bytes(header[4:], "little")
        data = _part(file, length, wanted=header[:4] in _WEBP_PARTS)
        if data is not None:
            parts[header[:4]] = data
        file.seek(length % 2, os.SEEK_CUR)
    exif, xmp, c2pa = (parts.get(kind, b"") for kind in _WEBP_PARTS)
    return ImageMetadata("webp", xmp=xmp, exif=exif.removeprefix(JPEG_EXIF), c2pa=c2pa)


def pixel_data_hash(data: bytes) -> str:
    """SHA-256 of the encoded pixels of a JPEG or WebP file, whatever metadata stands beside them."""
    parts = _webp_pixels(data) if data[:4] == b"RIFF" else _jpeg_pixels(data)
    return hashlib.sha256(b"".join(parts)).hexdigest()


def _webp_pixels(data: bytes) -> Iterator[bytes]:
    """The chunks that hold pixels."""
    position = 12
    while header := data[position : position + 8]:
        end = position + 8 + int.from_bytes(header[4:], "little")
        if header[:4] in _WEBP_IMAGE:
            yield data[position:end]
        position = end + end % 2


def _jpeg_pixels(data: bytes) -> Iterator[bytes]:
    """A JPEG without the segments of applications and comments."""
    position = 2
    while len(header := data[position : position + 4]) == 4 and header[0] == 0xFF and header[1] != _SOS:
        end = position + 2 + max(2, int.from_bytes(header[2:], "big"))
        if not 0xE0 <= header[1] <= 0xEF and header[1] != _COM:
            yield data[position:end]
        position = end
    yield data[position:]

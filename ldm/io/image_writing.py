"""Images as PNG, JPEG or WebP files, each with the same metadata: XMP, a comment, a text for other programs, a record.

A PNG has a text chunk for each. In a JPEG or WebP, the text for other programs stands in the EXIF user comment, where
A1111 writes it, and the record is a property in XMP. XMP also holds a hash of the encoded pixels there, as these
formats have no checksums.
"""

import hashlib
import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image
from PIL.ExifTags import IFD, Base

from ldm.errors import warn
from ldm.io.image_metadata import (
    COMMENT_KEY,
    JPEG_EXIF,
    JPEG_MORE_XMP,
    JPEG_XMP,
    XMP_KEY,
    ImageFormat,
    ImageMetadata,
    pixel_data_hash,
    read_metadata,
)
from ldm.io.opening import MAX_IMAGE_BYTES, read_bytes
from ldm.io.png import check_png, with_chunks
from ldm.io.xmp import xmp_packet

SUFFIXES: Mapping[ImageFormat, str] = {"png": ".png", "jpeg": ".jpg", "webp": ".webp"}
"""The ending of a file name of each format."""

RECORD_KEY = "ldm"
"""The text chunk of a PNG that holds the record."""
RECORD, PIXELS = "ldm:Record", "ldm:EncodedPixels"
"""XMP properties of a JPEG or WebP: the record, and SHA-256 of the encoded pixels."""

JPEG_QUALITY = 95

_SEGMENT_BYTES = 65_533
"""The longest content of a JPEG segment."""
_EXIF_FLAG, _XMP_FLAG = 0x08, 0x04


@dataclass(frozen=True)
class WrittenMetadata:
    """What is written beside the pixels.

    Attributes:
        properties: of XMP, named as `prefix:name`.
        comment: what the image is, in words.
        infotext: what A1111 and other programs read; empty for none.
        record: what only this program reads: JSON in ASCII, or empty for none.
    """

    properties: Mapping[str, str] = field(default_factory=dict)
    comment: str = ""
    infotext: str = ""
    record: str = ""


def encode_image(
    image: Image.Image, metadata: WrittenMetadata, kind: ImageFormat = "png", quality: int | None = None
) -> bytes:
    """An RGB image as the bytes of a file. The same arguments give the same bytes.

    Args:
        quality: of JPEG and WebP, 1 to 100; by default `JPEG_QUALITY`, and no loss for WebP.
    """
    if kind == "png":
        return with_chunks(image, png_chunks(metadata))
    return _jpeg(image, metadata, quality) if kind == "jpeg" else _webp(image, metadata, quality)


def record_text(metadata: ImageMetadata) -> str | None:
    """The record in a file, as it was written, or None if it has none."""
    return metadata.texts.get(RECORD_KEY) if metadata.format == "png" else metadata.properties.get(RECORD)


def check_encoded(path: Path) -> None:
    """Compare the checksums in an image file with its content: of a PNG those of its chunks, else that of the pixels.

    Raises:
        Exception: nearly any, if the file is damaged or was not written by `encode_image`.
    """
    data = read_bytes(path, MAX_IMAGE_BYTES)
    metadata = read_metadata(data)
    if metadata.format in (None, "png"):
        check_png(path)
    elif metadata.properties.get(PIXELS) != pixel_data_hash(data):
        raise ValueError("its pixels are not those that were written")


def png_chunks(metadata: WrittenMetadata) -> dict[str, str]:
    """The text chunks of a PNG with this metadata."""
    chunks = {
        "parameters": metadata.infotext,
        RECORD_KEY: metadata.record,
        COMMENT_KEY: metadata.comment,
        XMP_KEY: xmp_packet(metadata.properties) if metadata.properties else "",
    }
    return {key: text for key, text in chunks.items() if text}


def _jpeg(image: Image.Image, metadata: WrittenMetadata, quality: int | None) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality or JPEG_QUALITY, subsampling=0, comment=b"")
    data = buffer.getvalue()
    exif = JPEG_EXIF + _exif(metadata.infotext)
    if len(exif) > _SEGMENT_BYTES:
        warn("the prompt is too long for a JPEG's EXIF data: other programs will not find the settings there")
    segments = [(0xE1, exif)] if metadata.infotext and len(exif) <= _SEGMENT_BYTES else []
    segments += [(0xE1, content) for content in _xmp_segments(_properties(metadata, data))]
    segments += [(0xFE, metadata.comment.encode())] if metadata.comment else []
    begin = 2 if data[3] != 0xE0 else 4 + int.from_bytes(data[4:6], "big")  # after JFIF's segment
    return data[:begin] + b"".join(_segment(*each) for each in segments) + data[begin:]


def _segment(marker: int, content: bytes) -> bytes:
    return bytes((0xFF, marker)) + (len(content) + 2).to_bytes(2, "big") + content


def _xmp_segments(properties: Mapping[str, str]) -> list[bytes]:
    """One segment, or more for a long record: XMP specification part 3, section 1.1.3.1."""
    whole = JPEG_XMP + xmp_packet(properties).encode()
    if len(whole) <= _SEGMENT_BYTES:
        return [whole]
    inner = xmp_packet({RECORD: properties[RECORD]})
    more = inner[inner.index("<x:xmpmeta") : inner.index("<?xpacket end")].encode()
    guid = hashlib.md5(more, usedforsecurity=False).hexdigest().upper()
    rest = {name: text for name, text in properties.items() if name != RECORD}
    step = _SEGMENT_BYTES - len(JPEG_MORE_XMP) - 40
    head = JPEG_MORE_XMP + guid.encode() + len(more).to_bytes(4, "big")
    return [JPEG_XMP + xmp_packet(rest | {"xmpNote:HasExtendedXMP": guid}).encode()] + [
        head + offset.to_bytes(4, "big") + more[offset : offset + step]
        for offset in range(0, len(more), step)
    ]


def _webp(image: Image.Image, metadata: WrittenMetadata, quality: int | None) -> bytes:
    """The extended format, whose chunks may be of any length."""
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", lossless=quality is None, quality=90 if quality is None else quality, method=4)
    data = buffer.getvalue()
    xmp = xmp_packet(_properties(metadata, data)).encode()
    flags = _XMP_FLAG | (_EXIF_FLAG if metadata.infotext else 0)
    size = (image.width - 1).to_bytes(3, "little") + (image.height - 1).to_bytes(3, "little")
    chunks = _riff(b"VP8X", bytes((flags, 0, 0, 0)) + size) + data[12:]
    if metadata.infotext:
        chunks += _riff(b"EXIF", _exif(metadata.infotext))
    chunks += _riff(b"XMP ", xmp)
    return b"RIFF" + (len(chunks) + 4).to_bytes(4, "little") + b"WEBP" + chunks


def _riff(kind: bytes, content: bytes) -> bytes:
    return kind + len(content).to_bytes(4, "little") + content + b"\0" * (len(content) % 2)


def _properties(metadata: WrittenMetadata, data: bytes) -> dict[str, str]:
    """Those of XMP, with what a PNG has in chunks of its own."""
    record = {RECORD: metadata.record} if metadata.record else {}
    return {**metadata.properties, PIXELS: pixel_data_hash(data), **record}


def _exif(infotext: str) -> bytes:
    """EXIF data with a user comment, in the encoding of A1111."""
    exif = Image.Exif()
    exif[IFD.Exif] = {Base.UserComment.value: b"UNICODE\0" + infotext.encode("utf-16-be", "replace")}
    return exif.tobytes().removeprefix(JPEG_EXIF)

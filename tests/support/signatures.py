"""Identities and signed images for tests."""

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from typer.testing import CliRunner

from ldm.cli.app import app
from ldm.io.image_metadata import ImageFormat
from ldm.pipeline.record import encode_with_record
from ldm.provenance.credentials import ImageSigner, Ingredient
from ldm.provenance.signing_identity import CERTIFICATES, KEY, SigningFiles, make_identity
from tests.support.tiny_images import photo

RECORD: dict[str, Any] = {
    "prompt": "a red apple",
    "negative_prompt": "a secret word",
    "prompt_weights": "none",
    "seed": 7,
    "height": 24,
    "width": 33,
    "model_id": "emoji",
    "weights_hash": "0123456789abcdef",
    "ldm_version": "0.1.0",
}


def told(*arguments: object) -> tuple[int, str]:
    """The exit code of `ldm provenance`, called in this process, and what it printed."""
    done = CliRunner().invoke(app, ["provenance", *map(str, arguments)], catch_exceptions=False)
    return done.exit_code, done.output


def identity(folder: Path, name: str) -> SigningFiles:
    """A new identity."""
    make_identity(name, folder)
    return SigningFiles(folder / KEY, folder / CERTIFICATES)


def signed_image(
    files: SigningFiles,
    file_format: ImageFormat = "png",
    ingredients: Sequence[Ingredient] = (),
    *,
    image: Image.Image | None = None,
    with_prompts: bool = False,
    **changes: Any,
) -> bytes:
    record = RECORD | changes
    data = encode_with_record(image or photo(33, 24), record, file_format)
    return ImageSigner(files, with_prompts=with_prompts).sign(data, file_format, record, ingredients)


def with_a_changed_pixel(data: bytes, file_format: ImageFormat) -> bytes:
    """The file with another pixel value and everything else as it was, checksums of a PNG included."""
    if file_format != "png":
        place = data.rindex({"jpeg": b"\xff\xda", "webp": b"VP8L"}[file_format]) + 60
        return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
    begin, end = data.index(b"IDAT") - 4, data.rindex(b"IEND") - 4
    packed, place = b"", begin
    while place < end:
        length = int.from_bytes(data[place : place + 4], "big")
        packed += data[place + 8 : place + 8 + length]
        place += length + 12
    rows = bytearray(zlib.decompress(packed))
    rows[5] ^= 1
    chunk = b"IDAT" + zlib.compress(bytes(rows))
    return (
        data[:begin]
        + (len(chunk) - 4).to_bytes(4, "big")
        + chunk
        + zlib.crc32(chunk).to_bytes(4, "big")
        + data[end:]
    )

"""PNG files with text chunks."""

import io
import os
from collections.abc import Mapping
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngImageFile, PngInfo

from ldm.errors import UserError
from ldm.io.files import write_bytes
from ldm.io.opening import MAX_IMAGE_BYTES, open_file


def write_chunks(
    path: str | os.PathLike[str], image: Image.Image, chunks: Mapping[str, str], *, overwrite: bool = False
) -> None:
    """Write an image as PNG with text chunks. The file appears whole or not at all.

    Raises:
        UserError: `path` exists and `overwrite` is false, the disk is full, or the folder is not writable.
    """
    path, info, buffer = Path(path), PngInfo(), io.BytesIO()
    for key, text in chunks.items():
        info.add_text(key, text)
    image.save(buffer, "PNG", pnginfo=info)
    try:
        if path.is_dir() or (path.exists() and not overwrite):
            raise UserError(f"{path} exists already", "choose another name or move it away")
        write_bytes(path, buffer.getvalue())
    except OSError as error:  # a name too long, a file where a folder should be, a broken disk
        raise UserError(f"{path} cannot be written ({error.strerror})", "choose another place") from error


def read_chunk(path: str | os.PathLike[str], key: str) -> str | None:
    """One text chunk of a PNG, or None if it has no such chunk.

    Raises:
        UserError: the file is missing or is not a readable PNG.
    """
    try:
        with open_file(path, MAX_IMAGE_BYTES) as file, Image.open(file, formats=["PNG"]) as image:
            assert isinstance(image, PngImageFile)
            return image.text.get(key)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file", "name a PNG made by `ldm generate`") from error
    except Exception as error:  # a decoder of foreign bytes raises nearly anything
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise UserError(
            f"{path}: not a readable PNG ({reason})", "name one made by `ldm generate`"
        ) from error


def check_png(path: Path) -> None:
    """Compare every checksum in a PNG.

    Raises:
        Exception: nearly any, if the file is damaged or is not a PNG.
    """
    with open_file(path, MAX_IMAGE_BYTES) as file, Image.open(file, formats=["PNG"]) as image:
        image.verify()

"""PNG files with text chunks."""

import io
import os
from collections.abc import Mapping
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngImageFile, PngInfo

from ldm.errors import UserError
from ldm.io.files import write_bytes


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


def is_written_here(path: str | os.PathLike[str], key: str) -> bool:
    """Whether a file is a PNG with the text chunk that this program writes, even if its pixels are damaged.

    An empty file counts, too: it holds nothing that could be lost.
    """
    path = Path(path)
    try:
        if path.is_file() and not path.stat().st_size:
            return True
        with Image.open(path, formats=["PNG"]) as image:
            return isinstance(image, PngImageFile) and key in image.info
    except Exception:  # a decoder of foreign bytes raises nearly anything
        return False


def read_chunk(path: str | os.PathLike[str], key: str) -> str | None:
    """One text chunk of a PNG, or None if it has no such chunk.

    Raises:
        UserError: the file is missing or is not a readable PNG.
    """
    try:
        with Image.open(path, formats=["PNG"]) as image:
            assert isinstance(image, PngImageFile)
            return image.text.get(key)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file", "name a PNG made by `ldm generate`") from error
    except Exception as error:  # a decoder of foreign bytes raises nearly anything
        raise UserError(f"{path}: not a readable PNG ({error})", "name one made by `ldm generate`") from error

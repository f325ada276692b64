"""PNG files with text chunks."""

import io
import os
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngImageFile, PngInfo

from ldm.errors import UserError
from ldm.io.files import write_bytes, write_new
from ldm.io.image_metadata import png_text
from ldm.io.opening import MAX_IMAGE_BYTES, open_file, read_bytes


def with_chunks(image: Image.Image, chunks: Mapping[str, str]) -> bytes:
    """The content of a PNG file with text chunks."""
    info, buffer = PngInfo(), io.BytesIO()
    for key, text in chunks.items():
        info.add_text(key, text)
    image.save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


def write_chunks(
    path: str | os.PathLike[str], image: Image.Image, chunks: Mapping[str, str], *, overwrite: bool = False
) -> None:
    """Write an image as PNG with text chunks. The file appears whole or not at all.

    Raises:
        UserError: `path` exists and `overwrite` is false, the disk is full, or the folder is not writable.
    """
    write_new(path, with_chunks(image, chunks), overwrite=overwrite)


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


SIGNATURE = b"\x89PNG\r\n\x1a\n"
TEXT_CHUNKS = (b"tEXt", b"zTXt", b"iTXt")


def read_texts(path: Path) -> dict[str, str]:
    """All text chunks of a PNG, wherever they stand.

    Raises:
        UserError: the file is not a PNG, or a chunk is damaged.
    """
    return dict(png_text(kind, data) for kind, data in _chunks(path) if kind in TEXT_CHUNKS)


def replace_texts(path: Path, texts: Mapping[str, str]) -> None:
    """Give a PNG other text chunks; its pixels keep their bytes.

    Raises:
        UserError: the file is not a PNG, a chunk is damaged, or the disk is full.
    """
    info = PngInfo()
    for key, text in texts.items():
        info.add_text(key, text)
    kept = [(kind, data) for kind, data in _chunks(path) if kind not in TEXT_CHUNKS]
    chunks = [kept[0], *((kind, data) for kind, data, *_ in info.chunks), *kept[1:]]
    write_bytes(path, SIGNATURE + b"".join(_packed(kind, data) for kind, data in chunks))


def _packed(kind: bytes, data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")


def _chunks(path: Path) -> Iterator[tuple[bytes, bytes]]:
    """The type and the data of each chunk."""
    content = read_bytes(path, MAX_IMAGE_BYTES)
    position = len(SIGNATURE)
    while content.startswith(SIGNATURE) and content[position + 4 : position + 8].isalpha():
        begin, length = position + 8, int.from_bytes(content[position : position + 4], "big")
        kind, data = content[position + 4 : begin], content[begin : begin + length]
        position = begin + length + 4
        yield kind, data
        if kind == b"IEND":
            return
    raise UserError(f"{path}: not a complete PNG", "restore the file")

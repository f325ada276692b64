"""The program that decodes uploaded images, in a process apart with little memory: `python -m ldm.web.decode_upload`.

It reads requests from its standard input and writes a reply for each: a head of JSON and raw bytes, preceded by their
lengths. A decoder that crashes, or a file that unpacks to gigabytes, ends this process and not the server.
"""

import contextlib
import io
import json
import os
import resource
import signal
import struct
import sys
import warnings
from typing import IO, Any

from PIL import Image, ImageOps

from ldm.errors import UserError
from ldm.io.image_metadata import read_metadata
from ldm.io.image_writing import RECORD_KEY, record_text
from ldm.io.images import open_alpha, open_image
from ldm.io.png import SIGNATURE

MAX_MEMORY_BYTES = 3 * 2**30
BLACK = (0, 0, 0)
_LENGTHS = struct.Struct(">II")


def write_message(stream: IO[bytes], head: dict[str, Any], content: bytes = b"") -> None:
    """Write a head and its content."""
    text = json.dumps(head).encode()
    stream.write(_LENGTHS.pack(len(text), len(content)) + text + content)
    stream.flush()


def read_message(stream: IO[bytes]) -> tuple[dict[str, Any], bytes]:
    """Read what `write_message` wrote.

    Raises:
        EOFError: the other side has ended.
    """
    lengths = stream.read(_LENGTHS.size)
    if len(lengths) < _LENGTHS.size:
        raise EOFError
    of_head, of_content = _LENGTHS.unpack(lengths)
    head, content = stream.read(of_head), stream.read(of_content)
    if len(head) < of_head or len(content) < of_content:
        raise EOFError
    return json.loads(head), content


def decode(data: bytes, kind: str, name: str, max_pixels: int) -> Image.Image:
    """The image in a file: `photo` in RGB; `mask` in grey; `alpha` as the mask of its transparent part.

    Raises:
        UserError: as `ldm.io.images.open_image`.
    """
    if kind == "photo":
        return open_image(data, name=name, max_pixels=max_pixels)
    if kind == "alpha":
        return ImageOps.invert(open_alpha(data, name=name, max_pixels=max_pixels))
    return open_image(data, name=name, background=BLACK, max_pixels=max_pixels).convert("L")


def read_text(data: bytes, name: str, max_pixels: int) -> dict[str, str]:
    """The text chunks of a PNG that stand before its pixels; Pillow limits how long they are. Of a JPEG or WebP, the
    record.

    Raises:
        UserError: it is none of these, or has too many pixels.
    """
    if not data.startswith(SIGNATURE):
        metadata = read_metadata(data)
        if metadata.format is None:
            what = f"{name}: not a PNG, JPEG or WebP"
            raise UserError(what, "give an image as `ldm generate` or this page made it")
        record = record_text(metadata)
        return {} if record is None else {RECORD_KEY: record}
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            return {str(key): text for key, text in image.info.items() if isinstance(text, str)}
    except Exception as error:  # a decoder of foreign bytes raises nearly anything
        raise UserError(f"{name}: not a readable PNG ({error})", "restore the file") from None


def reply_to(head: dict[str, Any], data: bytes) -> tuple[dict[str, Any], bytes]:
    """The reply to a request."""
    kind, name, max_pixels = head["kind"], head["name"], head["max_pixels"]
    try:
        if kind == "text":
            return {"texts": read_text(data, name, max_pixels)}, b""
        image = decode(data, kind, name, max_pixels)
        return {"mode": image.mode, "size": image.size}, image.tobytes()
    except UserError as error:
        return {"what": error.what, "hint": error.hint}, b""
    except MemoryError:
        return {"what": f"{name}: needs too much memory to decode", "hint": "shrink it"}, b""


def main() -> None:
    """Answer requests until the input ends. Ctrl-C is the server's business."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))
    warnings.simplefilter("ignore")
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not get between the replies
    with contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            write_message(replies, *reply_to(*read_message(sys.stdin.buffer)))


if __name__ == "__main__":
    main()

"""Images that clients send: decoded in a process apart, within bounds of pixels, memory and time."""

import base64
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from ldm.errors import UserError
from ldm.web.decode_upload import read_message, write_message

UploadKind = Literal["photo", "mask", "alpha", "text"]
DECODE_SEC = 20.0
"""The longest time that decoding one image may take."""
_HINT = "save it again as PNG or JPEG"


class UploadReader:
    """Decodes images one after the other in a child process, which is started when the first one comes."""

    def __init__(self, max_pixels: int, *, max_sec: float = DECODE_SEC) -> None:
        self.max_pixels = max_pixels
        self.max_sec = max_sec
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def image(self, data: bytes, name: str, kind: UploadKind = "photo") -> Image.Image:
        """A decoded image: `photo` in RGB, `mask` in grey, `alpha` as the mask of its transparent part, in grey.

        Args:
            name: of the field that it came in, for messages.

        Raises:
            UserError: it is not an image, broken, too large, or takes too long.
        """
        head, content = self._ask(data, name, kind)
        return Image.frombytes(head["mode"], tuple(head["size"]), content)

    def texts(self, data: bytes, name: str) -> dict[str, str]:
        """The text chunks of a PNG; of a JPEG or WebP the record, under the key that a PNG has it under.

        Raises:
            UserError: it is none of these, or cannot be read.
        """
        head, _ = self._ask(data, name, "text")
        return dict(head["texts"])

    def _ask(self, data: bytes, name: str, kind: UploadKind) -> tuple[dict[str, Any], bytes]:
        request = {"kind": kind, "name": name, "max_pixels": self.max_pixels}
        with self._lock:
            process = self._running()
            overdue = threading.Timer(self.max_sec, process.kill)
            overdue.start()
            try:
                assert process.stdin is not None and process.stdout is not None
                write_message(process.stdin, request, data)
                head, content = read_message(process.stdout)
            except (EOFError, OSError):
                self._close()
                raise UserError(f"{name}: its decoder crashed or took too long", _HINT) from None
            finally:
                overdue.cancel()
        if "what" in head:
            raise UserError(head["what"], head["hint"])
        return head, content

    def _running(self) -> "subprocess.Popen[bytes]":
        if self._process is None or self._process.poll() is not None:
            self._close()
            self._process = _start()
        return self._process

    def close(self) -> None:
        """End the child process."""
        with self._lock:
            self._close()

    def _close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


def _start() -> "subprocess.Popen[bytes]":
    home = str(Path(__file__).resolve().parents[2])
    paths = [home, *filter(None, [os.environ.get("PYTHONPATH")])]
    own = {"PYTHONPATH": os.pathsep.join(paths), "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "ldm.web.decode_upload"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,  # Ctrl-C in a terminal does not reach it
        env={**os.environ, **own},
    )


def from_base64(text: Any, name: str) -> bytes:
    """The bytes of an image written as base64, alone or as a data URL. Nothing is ever fetched or opened.

    Raises:
        UserError: it is something else; URLs and paths are named as such.
    """
    hint = f"send the image itself in {name}, as base64 or as a data URL"
    if not isinstance(text, str):
        raise UserError(f"{name} is {type(text).__name__}, not text", hint)
    head, comma, rest = text.partition(",")
    if comma and head.startswith("data:") and head.endswith(";base64"):
        text = rest
    elif ":" in text[:20]:
        raise UserError(f"{name} is a URL", f"{hint}: this server fetches nothing")
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except ValueError:  # as of binascii
        raise UserError(f"{name} is not base64", f"{hint}: this server opens no files") from None

"""Standard streams that are closed, or whose reader or disk has gone: a program need not die of that."""

import errno
import os
import sys
from typing import Any, TextIO

GONE = (errno.EPIPE, errno.EBADF, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ECONNRESET)
"""The errors of writing to a stream whose reader, terminal or disk space has gone."""


def open_missing_streams() -> None:
    """Open /dev/null in place of a closed standard stream.

    Otherwise the next file that is opened would get its number, and what libraries print would be written into it.
    """
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number, which is this one
            setattr(sys, name, open(number, mode, closefd=False))  # noqa: SIM115  # it stays open


class ForgivingStream:
    """A text stream that is replaced by /dev/null once it cannot be written to; whoever prints notices nothing."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write text, or lose it."""
        try:
            return self._stream.write(text)
        except OSError as error:
            self._lose(error)
            return len(text)

    def flush(self) -> None:
        """Flush the stream, or lose what it holds."""
        try:
            self._stream.flush()
        except OSError as error:
            self._lose(error)

    def _lose(self, error: OSError) -> None:
        if error.errno not in GONE:
            raise error
        discard_output(self._stream)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def discard_output(stream: TextIO) -> None:
    """Send what a stream still holds, and all that is written to it later, to /dev/null."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)


def forgive_output(*names: str) -> None:
    """Make standard streams forgiving: `stdout`, `stderr`."""
    for name in names:
        stream = getattr(sys, name)
        if stream is not None and not isinstance(stream, ForgivingStream):
            setattr(sys, name, ForgivingStream(stream))

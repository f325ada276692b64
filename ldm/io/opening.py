"""The one way to open files that users give: regular files only, and none larger than its kind can be.

A path may lead to a pipe, on which reading waits forever, to a device without an end, or to a sparse file of any size
that takes no room on the disk. Here these are an `OSError`, as a missing file is, before anything is read.
"""

import errno
import io
import os
import stat
from pathlib import Path

MAX_TEXT_BYTES = 2**30
"""Maximum size of a text file: the metadata of some millions of images, the log of a long run."""

MAX_IMAGE_BYTES = 768 * 2**20
"""Maximum size of an image file: the largest image that is opened, uncompressed, with 16 bits in four channels."""

KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
"""What a path may lead to besides files and folders."""


def open_file(path: str | os.PathLike[str], max_bytes: int | None = None) -> io.BufferedReader:
    """Open a regular file for reading.

    Args:
        max_bytes: maximum size; None for formats whose readers check every size themselves.

    Raises:
        OSError: as `open` raises it; also if the path leads to something other than a regular file, or the file is too
            large. `strerror` then says so, and `errno` is EINVAL.
    """
    _check(path, os.stat(path), max_bytes)  # first, because opening some devices has an effect
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    try:
        _check(path, os.fstat(handle), max_bytes)  # what was opened may be another file
    except OSError:
        os.close(handle)
        raise
    return open(handle, "rb")


def check_file(path: str | os.PathLike[str], max_bytes: int | None = None) -> None:
    """Check a file that a library will open by its path; arguments and errors as of `open_file`."""
    _check(path, os.stat(path), max_bytes)


def _check(path: str | os.PathLike[str], status: os.stat_result, max_bytes: int | None) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
    if not stat.S_ISREG(status.st_mode):
        kind = KINDS.get(stat.S_IFMT(status.st_mode), "something else")
        raise OSError(errno.EINVAL, f"it is {kind}, not a regular file", os.fspath(path))
    if max_bytes is not None and status.st_size > max_bytes:
        raise _too_large(path, max_bytes)


def _too_large(path: str | os.PathLike[str], max_bytes: int) -> OSError:
    return OSError(errno.EINVAL, f"it has more than {max_bytes:,} bytes", os.fspath(path))


def read_bytes(path: str | os.PathLike[str], max_bytes: int) -> bytes:
    """The content of a regular file. Raises as `open_file`."""
    with open_file(path, max_bytes) as file:
        size = min(max_bytes, os.fstat(file.fileno()).st_size)
        data = file.read(size + 1)  # `read` allocates as many bytes as it is given, even for a short file
        if len(data) > size:  # a file that grows, or one in /proc, whose size is said to be 0
            data += file.read(max_bytes - size)
    if len(data) > max_bytes:
        raise _too_large(path, max_bytes)
    return data


def read_text(path: Path, max_bytes: int = MAX_TEXT_BYTES, *, errors: str = "strict") -> str:
    """The content of a regular UTF-8 file, with "\\n" line ends.

    Raises:
        OSError: as `open_file`.
        UnicodeDecodeError: it is not UTF-8 and `errors` is "strict".
    """
    text = read_bytes(path, max_bytes).decode("utf-8", errors)
    return text.replace("\r\n", "\n").replace("\r", "\n")

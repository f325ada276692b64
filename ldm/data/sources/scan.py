"""The files of a folder: listing them, comparing their names, and resolving names without leaving the folder."""

import errno
import os
import stat
import unicodedata
from pathlib import Path, PurePosixPath

from ldm.errors import UserError
from ldm.io.images import UNREADABLE_SUFFIXES

DOCUMENTS = frozenset({"readme", "license", "licence", "notice", "attribution", "credits"})
"""Stems of text files that are not captions."""

_NOT_OURS = frozenset({"@eaDir"})
"""Folders in which file servers keep thumbnails."""
_LONGEST_SHOWN = 80
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def scan(root: Path) -> list[str]:
    """The sorted names of all files below `root`, relative and with "/"; hidden files are ignored.

    Raises:
        UserError: a folder is unreadable or a link, a file's name is not UTF-8, or an image has an unsupported format.
    """
    names = []
    for folder, subfolders, files in os.walk(root, onerror=_refuse_unreadable):
        subfolders[:] = [name for name in subfolders if not name.startswith(".") and name not in _NOT_OURS]
        for name in subfolders:
            if Path(folder, name).is_symlink():
                raise UserError(f"{Path(folder, name)}: a linked folder is not followed", "put a copy there")
        for name in files:
            if not name.startswith("."):
                names.append(Path(folder, name).relative_to(root).as_posix())
    for name in names:
        _check_name(root, name)
    return sorted(names)


def _refuse_unreadable(error: OSError) -> None:
    raise UserError(f"{error.filename}: {error.strerror}", "make the folder readable") from error


def _check_name(root: Path, name: str) -> None:
    """Refuse files that would otherwise be ignored, and names that cannot key a random draw."""
    if suffix(name) in UNREADABLE_SUFFIXES:
        raise UserError(
            f"{root / name}: this image format is not supported", "convert it to PNG or JPEG, or move it away"
        )
    try:
        name.encode()
    except UnicodeEncodeError:
        shown = os.fsencode(name).decode("utf-8", "backslashreplace")
        raise UserError(f"{root}/{shown}: the file name is not UTF-8", "rename the file") from None


def suffix(name: str) -> str:
    """The last suffix in lower case: ".png"."""
    return PurePosixPath(name).suffix.lower()


def stem(name: str) -> str:
    """The name without its last suffix, in composed form: `a/b.c.png` and `a/b.c.txt` belong together."""
    return composed(PurePosixPath(name).with_suffix("").as_posix())


def composed(name: str) -> str:
    """A name in Unicode's composed form (NFC). File systems and editors differ in the form they use."""
    return unicodedata.normalize("NFC", name)


def status_of(path: Path) -> os.stat_result | None:
    """The status of a path, following links; None if nothing is there.

    Raises:
        UserError: a folder above it is not accessible, or the name is too long for a file.
    """
    try:
        return path.stat()
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return None
        if error.errno == errno.ENAMETOOLONG:
            raise UserError(f"{quoted(str(path))}: too long for a file name", "shorten it") from error
        raise UserError(f"{path}: {error.strerror}", "make its folder accessible") from error


def is_file(path: Path) -> bool:
    """Whether it is a regular file. Raises UserError like `status_of`."""
    status = status_of(path)
    return status is not None and stat.S_ISREG(status.st_mode)


def is_folder(path: Path) -> bool:
    """Whether it is a folder. Raises UserError like `status_of`."""
    status = status_of(path)
    return status is not None and stat.S_ISDIR(status.st_mode)


def file_inside(root: Path, name: str, place: str) -> Path:
    """The path of a file that is named relative to a folder.

    Args:
        place: where it is named, for messages.

    Raises:
        UserError: the name leads out of the folder, or does not lead to a regular file.
    """
    path, parts, shown = root / name, PurePosixPath(name), quoted(name)
    if parts.is_absolute() or ".." in parts.parts or "\0" in name:
        raise UserError(f"{place}: {shown} points outside {root}", "use a name relative to the folder")
    if any(len(os.fsencode(part)) > 255 for part in parts.parts) or len(os.fsencode(path)) >= 4096:
        raise UserError(
            f"{place}: {shown} is too long for a file name",
            "check whether the columns of names and captions are swapped",
        )
    if not is_file(path):
        raise _no_file(path, f"{place}: {shown}", root)
    if not path.resolve().is_relative_to(root.resolve()):
        raise UserError(f"{place}: {shown} is a link that leads out of {root}", "put a copy there")
    return path


def _no_file(path: Path, named: str, root: Path) -> UserError:
    """The error for a name that does not lead to a regular file."""
    status = status_of(path)
    if status is not None:
        kind = _KINDS.get(stat.S_IFMT(status.st_mode), "something else")
        return UserError(f"{named} in {root} is {kind}, not a file", "put the file there or remove the name")
    if path.is_symlink():
        return UserError(f"{named} in {root} is a broken link", "put the file itself there")
    return UserError(f"{named} is not in {root}", "add the file or remove the row")


def refuse_inside(named: str, place: Path, data: Path, *, choose: str = "a folder") -> None:
    """Refuse to write into the folder of the data.

    Args:
        named: the place as the user gave it, with its option or key.

    Raises:
        UserError: `place` is `data` or inside it, after resolving links.
    """
    if place.resolve().is_relative_to(data.resolve()):
        raise UserError(
            f"{named} is inside the data", f"choose {choose} elsewhere: the data is never written to"
        )


def quoted(name: str) -> str:
    """A name as shown in messages: quoted, with control characters escaped, shortened if long."""
    return repr(name if len(name) <= _LONGEST_SHOWN else name[:_LONGEST_SHOWN] + "...")

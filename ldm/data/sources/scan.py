"""The files of a folder: listing them, comparing their names, and resolving names without leaving the folder."""

import errno
import os
import stat
import unicodedata
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from ldm.errors import UserError
from ldm.io.images import UNREADABLE_SUFFIXES

DOCUMENTS = frozenset({"readme", "license", "licence", "notice", "attribution", "credits"})
"""Stems of text files that are not captions."""

_NOT_OURS = frozenset({"@eaDir"})
"""Folders in which file servers keep thumbnails."""
_UNREADABLE = tuple(UNREADABLE_SUFFIXES)
_LONGEST_SHOWN = 80
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


OnFault = Callable[[str, UserError], None]
"""Called with the name of a file, relative to the folder, and what is wrong with it."""


def _raise(name: str, error: UserError) -> None:
    raise error


def scan(root: Path, on_fault: OnFault = _raise) -> list[str]:
    """The sorted names of all files below `root`, relative and with "/"; hidden files are ignored.

    Args:
        on_fault: called for each file or folder that cannot be used, which is then left out; by default it raises.

    Raises:
        UserError: a folder is unreadable; or with the default `on_fault`, one is a link, a file's name is not UTF-8,
            or an image has an unsupported format.
    """
    names = []
    for folder, subfolders, files in os.walk(root, onerror=_refuse_unreadable):
        below = os.path.relpath(folder, root)
        prefix = "" if below == "." else f"{below}/"
        subfolders[:] = [name for name in subfolders if not name.startswith(".") and name not in _NOT_OURS]
        for name in subfolders:
            if os.path.islink(os.path.join(folder, name)):
                place = Path(folder, name)
                on_fault(
                    prefix + name, UserError(f"{place}: a linked folder is not followed", "put a copy there")
                )
        names += [prefix + name for name in files if not name.startswith(".")]
    faults = {name: fault for name in names if (fault := _name_fault(root, name))}
    for name in sorted(faults, key=os.fsencode):
        on_fault(name, faults[name])
    return sorted(name for name in names if name not in faults)


def _refuse_unreadable(error: OSError) -> None:
    raise UserError(f"{error.filename}: {error.strerror}", "make the folder readable") from error


def _name_fault(root: Path, name: str) -> UserError | None:
    """Why a file cannot be used: it would otherwise be ignored, or its name cannot key a random draw."""
    if name.lower().endswith(_UNREADABLE):  # a name that begins with a dot has been left out
        return UserError(
            f"{root / name}: this image format is not supported", "convert it to PNG or JPEG, or move it away"
        )
    if name.isascii():
        return None
    try:
        name.encode()
    except UnicodeEncodeError:
        shown = os.fsencode(name).decode("utf-8", "backslashreplace")
        return UserError(f"{root}/{shown}: the file name is not UTF-8", "rename the file")
    return None


def suffix(name: str) -> str:
    """The last suffix in lower case: ".png"."""
    before, dot, last = name.rpartition(".")
    has_one = last and before and "/" not in last and before[-1] != "/"
    return dot + last.lower() if has_one else ""


def stem(name: str) -> str:
    """The name without its last suffix, in composed form: `a/b.c.png` and `a/b.c.txt` belong together."""
    return composed(name[: len(name) - len(suffix(name))])


def composed(name: str) -> str:
    """A name in Unicode's composed form (NFC). File systems and editors differ in the form they use."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


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


class FilesInside:
    """The files of a folder by their relative names.

    The folders in it are resolved once each, because a data set may have millions of files.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._real_root = os.path.realpath(root)
        self._is_inside: dict[str, bool] = {}

    def find(self, name: str, place: str) -> str:
        """The path of a file.

        Args:
            place: where the file is named, for messages.

        Raises:
            UserError: the name leads out of the folder, or does not lead to a regular file.
        """
        path = f"{self.root}{os.sep}{name}"
        try:
            if ".." not in name and not name.startswith("/"):
                is_plain = stat.S_ISREG(os.lstat(path).st_mode)
                if is_plain and self._inside(path.rpartition(os.sep)[0]):
                    return path
        except (OSError, ValueError):
            pass  # said below
        return str(file_inside(self.root, name, place))

    def _inside(self, folder: str) -> bool:
        if folder not in self._is_inside:
            real = os.path.realpath(folder)
            self._is_inside[folder] = Path(real).is_relative_to(self._real_root)
        return self._is_inside[folder]


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
    hint = (
        'write names with "/" instead of backslashes'
        if "\\" in path.name
        else "add the file or remove the row"
    )
    return UserError(f"{named} is not in {root}", hint)


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

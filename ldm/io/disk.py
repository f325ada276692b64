"""The room on a disk. Nothing heavy is imported here: `ldm doctor` must answer where torch is broken."""

import shutil
from pathlib import Path

from ldm.errors import UserError


def free_bytes(folder: Path) -> int:
    """The room on the disk where a folder lies, or will lie once it is made."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(there).free


def check_free_space(folder: Path, num_bytes: int, *, hint: str = "free some space and run again") -> None:
    """Refuse to write `num_bytes` into a folder, there already or not, whose disk has no room for them.

    Raises:
        UserError: it has not.
    """
    free = free_bytes(folder)
    if free < num_bytes:
        raise UserError(
            f"{folder}: the disk is full, {num_bytes / 1e6:.1f} MB are needed and {free / 1e6:.1f} MB free",
            hint,
        )

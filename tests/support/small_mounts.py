"""File systems that tests mount, which needs root."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def mounted(folder: Path, *options: str) -> Iterator[Path]:
    """Inside the block something is mounted at `folder`; the test is skipped where that is not possible."""
    folder.mkdir(parents=True, exist_ok=True)
    if os.getuid() or shutil.which("mount") is None:
        pytest.skip("only root can mount a file system")
    if subprocess.run(["mount", *options, str(folder)], capture_output=True).returncode:
        pytest.skip("a file system cannot be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@contextmanager
def small_disk(folder: Path, size: str = "3m") -> Iterator[Path]:
    """A disk of its own at `folder`."""
    with mounted(folder, "-t", "tmpfs", "-o", f"size={size}", "tmpfs"):
        yield folder


@contextmanager
def bound(folder: Path) -> Iterator[Path]:
    """`folder` is a mount point on the disk that it is on, as with `docker run -v`."""
    folder.mkdir(parents=True, exist_ok=True)
    with mounted(folder, "--bind", str(folder)):
        yield folder

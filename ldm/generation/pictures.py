"""The pictures that prompts ask for: which there are, their file names, and whether they may be written."""

import tempfile
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ldm.errors import UserError
from ldm.generation.prompts import Prompt
from ldm.io.files import disk_errors
from ldm.pipeline.settings import LARGEST_SEED

GRID_NAME = "grid.png"
_SLUG_LENGTH = 40


@dataclass(frozen=True)
class Picture:
    """One picture to make.

    Attributes:
        number: its place in the input, from 1: prompt after prompt, and the images of a prompt by their seed.
        seed: its own.
    """

    number: int
    prompt: Prompt
    seed: int

    @property
    def name(self) -> str:
        """Its file name, such as `0001-a-red-apple-s7.png`: a matter of the input, not of the batches."""
        return f"{self.number:04d}-{slug(self.prompt.prompt)}-s{self.seed}.png"


def list_pictures(prompts: Iterable[Prompt]) -> list[Picture]:
    """Every picture that the prompts ask for, in order; without a seed of its own a prompt starts at 0.

    Raises:
        UserError: a seed becomes too large.
    """
    rows = [(prompt, (prompt.seed or 0) + i) for prompt in prompts for i in range(prompt.num_images or 1)]
    for prompt, seed in rows:
        if seed > LARGEST_SEED:
            what = f"seed {prompt.seed} with {prompt.num_images} images"
            raise UserError(what, f"the last picture's seed must be at most {LARGEST_SEED}")
    return [Picture(number, prompt, seed) for number, (prompt, seed) in enumerate(rows, start=1)]


def slug(prompt: str) -> str:
    """The beginning of a prompt as part of a file name: letters and digits of any script, the rest as `-`."""
    text = unicodedata.normalize("NFC", prompt).lower()
    kept = "".join(c if c.isalnum() or unicodedata.category(c).startswith("M") else " " for c in text)
    return "-".join(kept.split())[:_SLUG_LENGTH].rstrip("-") or "no-words"


@dataclass(frozen=True)
class Target:
    """Where pictures go.

    Attributes:
        overwrite: replace files of the same name.
        grid: write `grid.png` too, all the pictures side by side.
        resume: keep the pictures that are there already, where `ldm.generation.finished` finds nothing wrong with them.
    """

    folder: Path
    overwrite: bool = False
    grid: bool = False
    resume: bool = False

    @property
    def grid_path(self) -> Path:
        return self.folder / GRID_NAME

    def paths(self, pictures: Sequence[Picture]) -> list[Path]:
        """The files to write, in the order of the pictures; the grid comes last."""
        names = [picture.name for picture in pictures] + ([GRID_NAME] if self.grid else [])
        return [self.folder / name for name in names]

    def check(self, pictures: Sequence[Picture]) -> None:
        """Make sure, before any work is done, that the pictures can be written. Nothing is created.

        Raises:
            UserError: a file exists and neither `overwrite` nor `resume` is true, or the folder cannot be written to.
        """
        _check_writable(self.folder)
        taken = [path for path in self.paths(pictures) if path.exists()]
        for path in taken:
            if path.is_dir() or not (self.overwrite or self.resume):
                more = f" (and {len(taken) - 1} more)" if len(taken) > 1 else ""
                raise UserError(
                    f"{path} exists already{more}",
                    "add --overwrite, or --resume to keep it, or give another --output",
                )


def _check_writable(folder: Path) -> None:
    """A folder that does not exist yet is judged by the one that it would be made in."""
    try:
        with disk_errors(folder):
            standing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
            if not standing.is_dir():
                raise UserError(f"{standing} is a file", "give a folder as --output")
            tempfile.TemporaryFile(dir=standing).close()
    except OSError as error:  # a name too long, a broken disk
        raise UserError(f"{folder} cannot be written ({error.strerror})", "choose another place") from error

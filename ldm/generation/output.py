"""Where the images of a call go: their file names, and whether they may be written."""

import hashlib
import json
import math
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ldm.errors import UserError
from ldm.generation.signing import Signing, sheet_file, signed_sheet
from ldm.io.files import disk_errors, write_new
from ldm.io.image_metadata import ImageFormat
from ldm.io.image_writing import SUFFIXES
from ldm.io.images import image_grid, open_image
from ldm.io.opening import MAX_IMAGE_BYTES, read_bytes
from ldm.io.png import is_written_here, read_chunk
from ldm.pipeline.batches import ImageRequest
from ldm.pipeline.file_names import image_file_name
from ldm.pipeline.record import has_record, read_settings
from ldm.pipeline.xy_grid import Axis, grid_sheet
from ldm.provenance.safety import Safety

GRID_NAME = "grid.png"
GRID_CHUNK = "ldm_grid"
"""The text chunk of a grid that says which images it shows."""
_LEAST_LABELLED_PX = 48
"""Below narrower images there is no room for prompt and seed."""


def file_name(image: ImageRequest, file_format: ImageFormat = "png") -> str:
    """Such as `0001-a-red-apple-s7.png`; it depends on the prompts and seeds, not on the batches."""
    return image_file_name(image.number, image.prompt, image.seed, SUFFIXES[file_format])


@dataclass(frozen=True)
class GridLayout:
    """A grid over settings, see `ldm.pipeline.xy_grid`."""

    prompts: tuple[str, ...]
    x: Axis | None
    y: Axis | None


@dataclass(frozen=True)
class Target:
    """Where images go.

    Attributes:
        overwrite: replace files of the same name.
        grid: write `grid.png` too, all the images side by side.
        layout: of the grid; by default about as many rows as columns.
        file_format: of the images; the grid is a PNG.
        quality: of JPEG and WebP, see `ldm.io.image_writing.encode_image`.
        signing: how the images are signed, if they are.
        safety: how the images are checked, if they are.
        resume: keep the images that exist already, if `ldm.generation.finished` finds nothing wrong with them.
    """

    folder: Path
    overwrite: bool = False
    grid: bool = False
    resume: bool = False
    layout: GridLayout | None = None
    file_format: ImageFormat = "png"
    quality: int | None = None
    signing: Signing | None = None
    safety: Safety | None = None

    @property
    def grid_path(self) -> Path:
        return self.folder / GRID_NAME

    def path(self, image: ImageRequest) -> Path:
        """The file of one image."""
        return self.folder / file_name(image, self.file_format)

    def paths(self, images: Sequence[ImageRequest]) -> list[Path]:
        """The files to write, in the order of the images; the grid comes last."""
        return [self.path(image) for image in images] + ([self.grid_path] if self.grid else [])

    def check(self, images: Sequence[ImageRequest]) -> None:
        """Make sure, before any work is done, that the images can be written. Nothing is created.

        Raises:
            UserError: a file exists and neither `overwrite` nor `resume` is true; or it is not one of ours, or a grid
                of other images; or the folder cannot be written to; or PNG has a `quality`.
        """
        if self.quality is not None and self.file_format == "png":
            raise UserError("--quality has no effect on PNG, which has no loss", "add --format jpeg or webp")
        _check_writable(self.folder)
        taken = [path for path in self.paths(images) if os.path.lexists(path)]
        for path in taken:
            if path.is_dir() or not (self.overwrite or self.resume):
                more = f" (and {len(taken) - 1} more)" if len(taken) > 1 else ""
                raise UserError(
                    f"{path} exists already{more}",
                    "add --overwrite, or --resume to keep it, or give another --output",
                )
        if self.overwrite:
            self._check_ours(taken)
        elif self.grid and self.grid_path in taken:
            self._check_grid(images)

    def _check_ours(self, taken: Sequence[Path]) -> None:
        """Refuse to overwrite what this program did not write."""
        for path in taken:
            ours = is_written_here(path, GRID_CHUNK) if path == self.grid_path else has_record(path)
            if not ours:
                raise UserError(
                    f"{path} exists already, and was not written by this program",
                    "move it away, or give another --output; --overwrite replaces only images that were generated",
                )

    def _check_grid(self, images: Sequence[ImageRequest]) -> None:
        """Refuse to resume a call whose grid shows other images."""
        path = self.grid_path
        if not is_written_here(path, GRID_CHUNK):
            raise UserError(
                f"{path} exists already, and is not known to show these images",
                "move it away, leave out --grid, or give another --output",
            )
        if path.stat().st_size and read_chunk(path, GRID_CHUNK) != _contents(images):
            raise UserError(
                f"{path} shows the images of another call",
                "leave out --grid, give another --output, or add --overwrite to replace it",
            )

    def write_grid(self, images: Sequence[ImageRequest]) -> None:
        """Write `grid.png` from the files of the images, with prompts and seeds, or the values of the settings.

        It is signed if they are.

        Raises:
            UserError: an image's file is missing, the grid cannot be signed, or the disk is full or not writable.
        """
        opened = [open_image(self.path(image)) for image in images]
        edited = next((image for image in images if image.inputs), None)
        texts = {GRID_CHUNK: _contents(images)}
        data = sheet_file(self._grid(opened, images), edited=edited is not None, texts=texts)
        if self.signing:
            files = [(path.name, read_bytes(path, MAX_IMAGE_BYTES)) for path in map(self.path, images)]
            record = read_settings(self.path(edited or images[0]))
            data = signed_sheet(data, files, record, self.signing.signer())
        write_new(self.grid_path, data, overwrite=True)

    def _grid(self, opened: Sequence[Image.Image], images: Sequence[ImageRequest]) -> Image.Image:
        if self.layout:
            return grid_sheet(opened, self.layout.prompts, self.layout.x, self.layout.y)
        columns, labels = math.isqrt(len(opened) - 1) + 1, [f"{each.prompt} s{each.seed}" for each in images]
        readable = min(image.width for image in opened) >= _LEAST_LABELLED_PX
        return image_grid(opened, num_columns=columns, captions=labels if readable else None)


def _contents(images: Sequence[ImageRequest]) -> str:
    """What a grid shows: a hash of the images that were asked for."""
    asked = [[image.number, image.prompt, image.seed, _given(image)] for image in images]
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


def _given(image: ImageRequest) -> dict[str, Any]:
    settings = image.settings.model_dump(mode="json", exclude_unset=True)
    inputs = {name: each.record.sha256 for name, each in image.inputs.items()}
    return settings | ({"inputs": inputs} if inputs else {})


def _check_writable(folder: Path) -> None:
    """A folder that does not exist yet is judged by the nearest parent that does."""
    try:
        with disk_errors(folder):
            standing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
            if not standing.is_dir():
                raise UserError(f"{standing} is a file", "give a folder as --output")
            tempfile.TemporaryFile(dir=standing).close()
    except OSError as error:  # a name too long, a broken disk
        raise UserError(f"{folder} cannot be written ({error.strerror})", "choose another place") from error

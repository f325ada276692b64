"""One captioned image, wherever its bytes lie, and what was found out about it."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from ldm.errors import UserError
from ldm.io.images import WHITE, Color, open_image

Stamp = tuple[str, int, int, int]
"""Absolute path, size in bytes, and times in nanoseconds: of the last modification and of the last change of any kind,
which no copying program restores. While it stays, so do the bytes."""


class ImageSource(Protocol):
    """Where an encoded image lies. Small and picklable, so that it can travel to a loader process."""

    @property
    def name(self) -> str:
        """What messages call it, such as `photos/0001.jpg` or `train.parquet row 7`."""
        ...

    def read(self) -> bytes:
        """The file's bytes, still encoded. Raises UserError when they are gone."""
        ...

    def stamp(self) -> Stamp | None:
        """By what a memo knows it again without reading it; None where there is nothing to go by."""
        ...


@dataclass(frozen=True)
class FileImage:
    """An image that is a file."""

    path: Path

    @property
    def name(self) -> str:
        return str(self.path)

    def read(self) -> bytes:
        try:
            return self.path.read_bytes()
        except OSError as error:
            raise UserError(f"{self.path}: {error.strerror}", "name a readable image file") from error

    def stamp(self) -> Stamp | None:
        try:
            status = os.stat(self.path)
        except OSError:
            return None
        return stamp_of(str(self.path.resolve()), status)


def stamp_of(name: str, *files: os.stat_result) -> Stamp:
    """The stamp of what lies in some files, under a name of its own."""
    size = sum(status.st_size for status in files)
    return name, size, max(s.st_mtime_ns for s in files), max(s.st_ctime_ns for s in files)


@dataclass(frozen=True)
class Sample:
    """One captioned image.

    Attributes:
        sample_id: unique in a run and independent of where the data lies; keys every random draw.
        image: where the image's bytes lie.
        captions: its captions, at least one; the first is `text`.
        may_flip: whether mirroring keeps the captions true, or None when the data does not say.
        loss_weight: what its loss is multiplied with.
        loss_mask: an image that is white where the loss counts and black where it does not.
        extra: the row's other columns.
    """

    sample_id: str
    image: ImageSource
    captions: tuple[str, ...]
    may_flip: bool | None = None
    loss_weight: float = 1.0
    loss_mask: ImageSource | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def text(self) -> str:
        return self.captions[0]

    def open(self, background: Color = WHITE) -> Image.Image:
        """The image, decoded and upright, RGB.

        Raises:
            UserError: it is gone, broken, truncated or no image.
        """
        return open_image(self.image.read(), name=self.image.name, background=background)


@dataclass(frozen=True)
class Refusal:
    """Something that was found and cannot be used, and why, in one line with the mend."""

    sample_id: str
    reason: str


@dataclass(frozen=True)
class ImageInfo:
    """What decoding an image once found out; kept in the memo, so plain values only.

    Attributes:
        content_hash: SHA-256 of the encoded bytes, in hex.
        width: pixels, upright.
        height: pixels, upright.
        perceptual_hash: 64 bits that hardly change when the image is scaled or saved again.
        notes: what of the file was left out, such as "first of 12 frames used".
        is_black: whether no pixel is anything else; of a mask, nothing of its image counts.
    """

    content_hash: str
    width: int
    height: int
    perceptual_hash: int
    notes: tuple[str, ...] = ()
    is_black: bool = False

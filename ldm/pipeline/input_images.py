"""Images given to `generate`: what identifies them, and how they become pixels of the size that is made.

Axis letters: C latent channels, H W pixels, h w latent size.
"""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from pydantic import ConfigDict, Field
from torch import Tensor

from ldm.config import Settings
from ldm.errors import UserError
from ldm.io.images import image_to_tensor, open_alpha, open_image, resize_and_crop
from ldm.models.expansion import Expansion, Fill
from ldm.noise import generator_for

GivenImage = str | os.PathLike[str] | Image.Image
"""An image as a caller of `generate` names it: a file, or a Pillow image."""

Kind = Literal["photo", "mask", "alpha", "blank"]
"""How an image is read: in RGB; as a mask, white where the image may change; as the mask of the transparent part; or
not at all, for a mask that is black."""

ALPHA = "alpha"
"""Given as a mask, it stands for the transparent part of the image."""

BLACK = (0, 0, 0)

WHITE_FROM = 128
"""Masks are black or white: a pixel of at least this value may change."""


class InputRecord(Settings):
    """What an image's record says of an image that it was made from.

    Attributes:
        sha256: of the decoded pixels, so that a copy in another lossless format is the same image.
    """

    sha256: str
    width: int
    height: int


@dataclass(frozen=True)
class Placement:
    """Where an image stands on a larger canvas.

    Attributes:
        fill: what surrounds a photo; a mask is white there.
        overlap: how many pixels a mask reaches into the image in sampling.
    """

    expansion: Expansion
    fill: Fill = "mirror"
    overlap: int = 0

    def on_canvas(self, image: Image.Image, key: str) -> Image.Image:
        """The image, RGB or a grey mask, with what surrounds it; noise is drawn from `key`."""
        canvas = _filled(image, self.expansion, "white" if image.mode == "L" else self.fill, key)
        canvas.paste(image, (self.expansion.left, self.expansion.top))
        return canvas


def _filled(image: Image.Image, sides: Expansion, fill: str, key: str) -> Image.Image:
    """A canvas around an image, without the image in its place where the fill is noise or white."""
    width, height = sides.size(image.width, image.height)
    if fill == "white":
        return Image.new("L", (width, height), 255)
    if fill == "noise":
        drawn = torch.randint(256, (height, width, 3), generator=generator_for(key, "expand"))
        return Image.fromarray(drawn.numpy().astype(np.uint8))
    around = ((sides.top, sides.bottom), (sides.left, sides.right), (0, 0))
    return Image.fromarray(np.pad(np.asarray(image), around, mode="edge" if fill == "edge" else "symmetric"))


@dataclass(frozen=True)
class InputImage:
    """An image that was decoded once, and is decoded again when it is used.

    Attributes:
        name: in messages, such as its path.
        record: what identifies it.
        file: where it is, or None for one in memory.
        decoded: the image in memory, or None. It is not sent to other processes.
        placement: on a larger canvas, or None. `record` is that of the image itself.
    """

    __pydantic_config__ = ConfigDict(arbitrary_types_allowed=True)

    name: str
    kind: Kind
    record: InputRecord
    file: Path | None = None
    decoded: Annotated[Image.Image | None, Field(exclude=True)] = None
    placement: Placement | None = None

    @property
    def is_given(self) -> bool:
        """Whether it was given, and is not a mask that follows from an expansion."""
        return self.kind != "blank"

    @property
    def size(self) -> tuple[int, int]:
        """Width and height, those of the canvas if it stands on one."""
        size = self.record.width, self.record.height
        return self.placement.expansion.size(*size) if self.placement else size

    def open(self) -> Image.Image:
        """The image, RGB or a grey mask, on its canvas.

        Raises:
            UserError: the file is gone, damaged or another image than before.
        """
        image = self._read()
        return self.placement.on_canvas(image, self.record.sha256) if self.placement else image

    def _read(self) -> Image.Image:
        if self.kind == "blank":
            return Image.new("L", (self.record.width, self.record.height), 0)
        image = _decode(self.decoded if self.file is None else self.file, self.name, self.kind)
        if _record_of(image) != self.record:
            raise UserError(f"{self.name} has changed since this call began", "start again")
        return image

    def values(self, height: int, width: int, multiple: int) -> Tensor:
        """The image at a size, on the canvas: [3, H, W] in [-1, 1], or for a mask [1, H, W], 1 where it is white.

        A mask with a placement is larger by its overlap, but not in `open`.
        """
        if self.kind == "photo":
            return photo_values(self.open(), height, width, multiple)
        mask = mask_values(self.open(), height, width, multiple)
        overlap = self.placement.overlap if self.placement else 0
        return F.max_pool2d(mask[None], 2 * overlap + 1, stride=1, padding=overlap)[0] if overlap else mask


def read_input(given: GivenImage, kind: Kind, *, name: str = "") -> InputImage:
    """Decode an image to find out what identifies it.

    Args:
        name: in messages, for an image in memory.

    Raises:
        UserError: the file is missing, too large, damaged or not an image, or `given` is something else.
    """
    if not isinstance(given, str | os.PathLike | Image.Image):
        raise UserError(f"{name} is a {type(given).__name__}", "give a file name or a PIL image")
    source = given if isinstance(given, Image.Image) else Path(given)
    shown = name if isinstance(source, Image.Image) else str(source)
    image = _decode(source, shown, kind)
    if kind != "photo":
        _check_something_changes(image, shown, kind)
    place = {"decoded": source} if isinstance(source, Image.Image) else {"file": source}
    return InputImage(shown, kind, _record_of(image), **place)


def memory_image(image: Image.Image, kind: Kind) -> InputImage:
    """An image in memory, RGB or a grey mask."""
    return InputImage(kind, kind, _record_of(image), decoded=image)


def _check_something_changes(mask: Image.Image, name: str, kind: Kind) -> None:
    if (np.asarray(mask) >= WHITE_FROM).any():
        return
    if kind == "alpha":
        raise UserError(f"{name} has nothing transparent, so nothing would change", "give --mask FILE")
    raise UserError(f"{name} is black, so nothing would change", "paint what is to be made anew white")


def read_inputs(
    image: GivenImage | None, mask: GivenImage | None, *, names: tuple[str, str] = ("image", "mask")
) -> dict[str, InputImage]:
    """The images given for one prompt, by name.

    Args:
        mask: white where the image may change, or `ALPHA` for the transparent part of the image.
        names: what the two are called in messages if they are in memory.

    Raises:
        UserError: as `read_input`; there is a mask without an image, or it has another size.
    """
    if image is None and mask is not None:
        raise UserError("a mask is given without an image", "add the image that it belongs to")
    if image is None:
        return {}
    found = {"image": read_input(image, "photo", name=names[0])}
    if mask is not None:
        of_alpha = isinstance(mask, str) and mask == ALPHA
        found["mask"] = (
            read_input(image, "alpha", name=names[0]) if of_alpha else read_input(mask, "mask", name=names[1])
        )
        _check_size(found["mask"], found["image"])
    return found


def pair_inputs(
    texts: Sequence[str],
    images: GivenImage | Sequence[GivenImage] | None,
    masks: GivenImage | Sequence[GivenImage] | None,
) -> list[tuple[str, dict[str, InputImage]]]:
    """Each prompt with its images. One image, or one prompt, goes with all of the others; lists are paired in order.

    Raises:
        UserError: two lists have different lengths, or as `read_inputs`.
    """
    lists = {"prompts": list(texts), "images": _listed(images), "masks": _listed(masks)}
    lengths = {name: len(each) for name, each in lists.items() if len(each) != 1}
    if len(set(lengths.values())) > 1:
        counts = " and ".join(f"{count} {name}" for name, count in lengths.items())
        raise UserError(f"{counts} cannot be paired", "give one for all, or as many of each")
    count = max(lengths.values(), default=1) if 0 not in lengths.values() else 0
    rows = zip(*(each * count if len(each) == 1 else each for each in lists.values()), strict=True)
    read: dict[tuple[int, int], dict[str, InputImage]] = {}  # each image once, though many prompts share it
    pairs = []
    for number, (text, image, mask) in enumerate(rows, start=1):
        key = (id(image), id(mask))
        if key not in read:
            names = (_numbered("image", number, lists["images"]), _numbered("mask", number, lists["masks"]))
            read[key] = read_inputs(image, mask, names=names)
        pairs.append((text, read[key]))
    return pairs


def _numbered(name: str, number: int, listed: Sequence[Any]) -> str:
    return name if len(listed) == 1 else f"{name} {number}"


def _listed(given: GivenImage | Sequence[GivenImage] | None) -> list[Any]:
    return list(given) if isinstance(given, Sequence) and not isinstance(given, str) else [given]


def _check_size(mask: InputImage, image: InputImage) -> None:
    sizes = [(each.record.width, each.record.height) for each in (mask, image)]
    if sizes[0] != sizes[1]:
        (width, height), wanted = sizes
        raise UserError(
            f"{mask.name} has {width} x {height} pixels, and {image.name} {wanted[0]} x {wanted[1]}",
            "give a mask of the image's size",
        )


def _decode(given: Path | Image.Image | None, name: str, kind: Kind) -> Image.Image:
    assert given is not None
    if kind == "alpha":
        return ImageOps.invert(open_alpha(given, name=name))
    if kind == "mask":
        return open_image(given, name=name, background=BLACK).convert("L")
    return open_image(given, name=name)


def _record_of(image: Image.Image) -> InputRecord:
    header = f"{image.mode} {image.width} {image.height}\n".encode()
    digest = hashlib.sha256(header + image.tobytes()).hexdigest()
    return InputRecord(sha256=digest, width=image.width, height=image.height)


def fitted(image: Image.Image, height: int, width: int) -> Image.Image:
    """The image at the size that is made; one of that size already is returned unchanged."""
    return image if image.size == (width, height) else resize_and_crop(image, height, width)


def canvas_size(height: int, width: int, multiple: int) -> tuple[int, int]:
    """The size that the model works at: the next multiples. The image made is cut back to `height` x `width`."""
    return -(-height // multiple) * multiple, -(-width // multiple) * multiple


def to_canvas(values: Tensor, multiple: int) -> Tensor:
    """Repeat the last row and column of [C, H, W] up to `canvas_size`."""
    height, width = values.shape[-2:]
    canvas_height, canvas_width = canvas_size(height, width, multiple)
    return F.pad(values[None], (0, canvas_width - width, 0, canvas_height - height), mode="replicate")[0]


def photo_values(image: Image.Image, height: int, width: int, multiple: int) -> Tensor:
    """An RGB image as pixel values [3, H, W] in [-1, 1] on the canvas."""
    return to_canvas(image_to_tensor(fitted(image, height, width)), multiple)


def mask_values(mask: Image.Image, height: int, width: int, multiple: int) -> Tensor:
    """A grey mask as [1, H, W] on the canvas: 1 where the image may change."""
    grey = np.asarray(fitted(mask, height, width))
    return to_canvas(torch.from_numpy((grey >= WHITE_FROM).astype(np.float32))[None], multiple)


def latent_mask(mask: Tensor, pixels_per_latent: int) -> Tensor:
    """A mask [B, 1, H, W] for the latents [B, 1, h, w]: a latent may change if any of its pixels may."""
    return F.max_pool2d(mask, pixels_per_latent)

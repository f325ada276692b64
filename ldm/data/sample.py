"""A captioned image with the further images and texts that a task needs, and what decoding it found.

A sample has a main image, which a model learns to generate, its captions, and optionally a loss mask. A task may need
more: InstructPix2Pix a source image and an instruction, inpainting a mask, ControlNet a control image. It lists them
in a `TaskInputs`, which every step from reading to batches takes. Without it, samples have neither further images nor
texts, whatever columns the data has.

    inputs = TaskInputs(
        images=(ImageInput("source", encoded=True), ImageInput("mask", "mask")), texts=("instruction",)
    )
    reading = read_sources(settings.all_sources(), inputs)  # Sample.images["source"], Sample.texts["instruction"]
    facts = survey(reading.samples, image_index)            # every image decoded once; ImageInfo.named["source"]
    prepared = prepare(reading, facts, settings, ...)       # BucketedSample
    one.input_pixels(inputs.images[0], crop, flip)          # [3, H, W], the same crop as one.pixels(crop, flip)
    open_shard(shard, settings, inputs=inputs, ...)         # the same for streams

In a batch, a text is a list of B strings under its name, and an image a tensor under `ImageInput.key`:

    LatentSamples(..., images={image.key: read for ...}, texts=inputs.texts)
    StreamedSamples(like, inputs)                           # makes the readers itself

    batch["source"]       encoded=True: moments where the batch has `moments`, else pixel_values, like the main image
    batch["mask_pixels"]  encoded=False: [B, 1, H, W] in [0, 1]; of kind "photo" [B, 3, H, W] in [-1, 1]
    batch["loss_mask"]    [B, 1, h, w], unrelated to an image that is called `mask`

The readers are `read_inputs(placed, image)`, which decodes files, and with a cache, for encoded images, the moments:

    keys = variant_keys(placed, autoencoder_hash, flip, image)      # these are in ldm.data.cache.moments
    wanted += cache_items(placed, keys, image)                      # for MomentsCache.fill
    moments_reader(cache, keys)

The main image is `MAIN_INPUT`, named `image`; a task that needs its pixel values besides its moments asks for it so.

Folders name further images in metadata columns `NAME_file_name`, as ImageFolder does; parquet files and `datasets`
have image columns `NAME`; tars have members `KEY.NAME.png`.
"""

import hashlib
import os
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from PIL import Image

from ldm.data.rights import NO_RIGHTS, ImageRights
from ldm.errors import UserError
from ldm.io.images import WHITE, Color, open_image
from ldm.io.opening import MAX_IMAGE_BYTES, read_bytes

if TYPE_CHECKING:
    from torch import Tensor

Stamp = tuple[str, int, int, int]
"""Absolute path, size in bytes, and the times of the last modification and of the last change of any kind, in
nanoseconds; copying programs cannot restore the latter. While the stamp is the same, so are the bytes."""


class ImageSource(Protocol):
    """Where an encoded image is stored. Small and picklable, so that it can be sent to a loader process."""

    @property
    def name(self) -> str:
        """Its name in messages, such as `photos/0001.jpg` or `train.parquet row 7`."""
        ...

    def read(self) -> bytes:
        """The encoded bytes. Raises UserError if they are gone."""
        ...

    def stamp(self) -> Stamp | None:
        """Identifies the bytes without reading them; None if that is not possible."""
        ...


@dataclass(frozen=True, slots=True, init=False)
class FileImage:
    """An image in a file. It keeps its path as text: there may be millions of them."""

    file: str

    def __init__(self, file: str | os.PathLike[str]) -> None:
        object.__setattr__(self, "file", os.fspath(file))

    @property
    def path(self) -> Path:
        return Path(self.file)

    @property
    def name(self) -> str:
        return str(self.file)

    def read(self) -> bytes:
        try:
            return read_bytes(self.path, MAX_IMAGE_BYTES)
        except OSError as error:
            raise UserError(f"{self.file}: {error.strerror}", "name a readable image file") from error

    def stamp(self) -> Stamp | None:
        try:
            status = os.lstat(self.file)
            if stat.S_ISLNK(status.st_mode):
                return stamp_of(os.path.realpath(self.file), os.stat(self.file))
            folder, name = os.path.split(self.file)
            real = os.path.join(_real_folder(folder), name)
        except OSError:
            return None
        return stamp_of(self.file if real == self.file else real, status)


@lru_cache(maxsize=1024)
def _real_folder(folder: str) -> str:
    return os.path.realpath(folder)


def stamp_of(name: str, *files: os.stat_result) -> Stamp:
    """The stamp of something named `name` that is stored in some files."""
    size = sum(status.st_size for status in files)
    return name, size, max(s.st_mtime_ns for s in files), max(s.st_ctime_ns for s in files)


def read_unchanged(image: ImageSource, content_hash: str) -> bytes:
    """An image's bytes, checked to be those that were surveyed.

    Raises:
        UserError: the image is gone or has changed.
    """
    data = image.read()
    if hashlib.sha256(data).hexdigest() != content_hash:
        raise UserError(f"{image.name} has changed since it was checked", "run again with cache.rehash=true")
    return data


ImageKind = Literal["photo", "control", "mask", "labels"]
"""How a further image is resampled, and what its values are.

photo: Lanczos, RGB in [-1, 1], like the main image. Only photos can be encoded. control: box filter, RGB in [0, 1],
such as edges or depth. mask: box filter, grey in [0, 1]. labels: nearest neighbour, RGB in [0, 1], for maps whose
colours are classes.
"""


MAIN_IMAGE = "image"


@dataclass(frozen=True)
class ImageInput:
    """An image that a task needs of each sample.

    Attributes:
        name: of the further image, or `image` for the main one.
        encoded: whether it goes through the autoencoder; else the task gets its pixel values.

    Raises:
        ValueError: an image that is not a photo is to be encoded.
    """

    name: str
    kind: ImageKind = "photo"
    encoded: bool = False

    def __post_init__(self) -> None:
        if self.encoded and self.kind != "photo":
            raise ValueError(f"the image {self.name!r} is of kind {self.kind}: only photos can be encoded")

    @property
    def key(self) -> str:
        """Its name in a batch."""
        return self.name if self.encoded else f"{self.name}_pixels"


MAIN_INPUT = ImageInput(MAIN_IMAGE)


SampleDraw = tuple[int | str, ...]
"""The key of a sample's random draws, (seed, epoch, sample id): see `ldm.noise`."""


Derive = Callable[["Tensor", SampleDraw], Mapping[str, Any]]
"""`derive(pixel_values [3, H, W], key)`: see `TaskInputs.derive`."""


@dataclass(frozen=True)
class DrawnImage:
    """An image that a task makes from the main image and the sample's draws, and encodes: such as one with a hole.

    Attributes:
        name: of its moments in a batch.
        make: pixel values [3, H, W] of the main image, and what `TaskInputs.draw` returned -> pixel values [3, H, W].
            A function of a module.
        version: changes when the same key would give another image; the cache depends on it.
    """

    name: str
    make: Callable[[Any, Mapping[str, Any]], Any]
    version: str


@dataclass(frozen=True)
class TaskInputs:
    """What a task needs of each sample besides its captions and the latents of its main image.

    Attributes:
        images: the images; one may be listed twice, encoded and not.
        texts: columns of text.
        draw: what else is drawn at random for each sample, from its key and the height and width of its crop in
            pixels: tensors, or numbers, by the names that they have in the batch. A function of a module, so that it
            can be sent to a loader process.
        drawn_image: an image that needs `draw`. Where its moments are cached, the batch has them under its name, and
            not the pixel values of the main image.
        derive: the same of what is made from the main image for each sample, from its pixel values [3, H, W] and its
            key. `images` must list `MAIN_INPUT`.
    """

    images: tuple[ImageInput, ...] = ()
    texts: tuple[str, ...] = ()
    draw: Callable[[SampleDraw, tuple[int, int]], Mapping[str, Any]] | None = None
    drawn_image: DrawnImage | None = None
    derive: Derive | None = None

    @property
    def further_images(self) -> tuple[str, ...]:
        """The names of the images besides the main one, each once."""
        return tuple(dict.fromkeys(image.name for image in self.images if image.name != MAIN_IMAGE))


NO_INPUTS = TaskInputs()


_NOTHING: Mapping[str, Any] = {}


def _nothing() -> Mapping[str, Any]:
    """One empty mapping for all samples: there may be millions of them."""
    return _NOTHING


@dataclass(frozen=True, slots=True)
class Sample:
    """One captioned image.

    Attributes:
        sample_id: unique in a run and independent of where the data is; keys every random draw.
        image: the main image.
        captions: its captions, at least one; the first is `text`.
        may_flip: whether the captions are still true of the mirrored image; None if the data does not say.
        loss_weight: a factor of its loss.
        loss_mask: an image that is white where the loss counts and black where it does not.
        extra: the row's other columns.
        images: the further images that the task needs, by name; transformed together with `image`.
        texts: the further texts that the task needs, by name.
        caption_rule: what its caption was made from, if the data has none: see `ldm.data.sources.no_caption`.
    """

    sample_id: str
    image: ImageSource
    captions: tuple[str, ...]
    may_flip: bool | None = None
    loss_weight: float = 1.0
    loss_mask: ImageSource | None = None
    extra: Mapping[str, Any] = field(default_factory=_nothing)
    images: Mapping[str, ImageSource] = field(default_factory=_nothing)
    texts: Mapping[str, str] = field(default_factory=_nothing)
    caption_rule: str = ""

    @property
    def text(self) -> str:
        return self.captions[0]

    def open(self, background: Color = WHITE) -> Image.Image:
        """The main image, decoded, upright and RGB.

        Raises:
            UserError: it is gone, damaged, truncated or not an image.
        """
        return open_image(self.image.read(), name=self.image.name, background=background)


@dataclass(frozen=True)
class Refusal:
    """A sample that cannot be used.

    Attributes:
        reason: one line that says why, and how to fix it.
        hint: how to fix it; the end of `reason`.
    """

    sample_id: str
    reason: str
    hint: str = ""


def refusal_of(sample_id: str, error: UserError) -> Refusal:
    """The refusal of a sample for a fault, on one line."""
    return Refusal(sample_id, " ".join(str(error).split()), " ".join(error.hint.split()))


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """What decoding an image found out. The image index keeps it, so it has plain values only.

    Attributes:
        content_hash: SHA-256 of the encoded bytes, in hex.
        width: pixels, upright.
        height: pixels, upright.
        perceptual_hash: 64 bits that change little when the image is scaled or saved again.
        notes: what was ignored in the file, such as "first of 12 frames used".
        is_black: whether all pixels are black; a mask like that would leave nothing of its image.
        rights: what its file says about rights.
        named: the same for the sample's further images, by name. Set by `survey` and not kept in the image index.
    """

    content_hash: str
    width: int
    height: int
    perceptual_hash: int
    notes: tuple[str, ...] = ()
    is_black: bool = False
    rights: ImageRights = NO_RIGHTS
    named: Mapping[str, "ImageInfo"] = field(default_factory=_nothing)

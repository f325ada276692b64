"""A sample as a training item, with its random draws, and items collated into batches.

Every draw is a function of (seed, epoch, sample id), never of the rank, the worker, the batch or what was drawn before.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ldm import noise
from ldm.data.captions import CaptionSettings, caption_for, flip_allowed
from ldm.data.order import SampleKey
from ldm.data.prepare import BucketedSample
from ldm.data.sample import MAIN_INPUT, Derive, ImageInput, Sample, SampleDraw
from ldm.io.images import image_to_tensor, resize_and_crop

BATCH_NAMES = frozenset({
    "sample_id", "pixel_values", "moments", "posterior_noise", "noise", "position", "caption", "weight", "loss_weight",
    "loss_mask", "perturbation", "offset", "told_sizes",
})  # fmt: skip
"""The names that a batch of any task may hold."""

DRAWN = "drawn_"
"""What the names of a task's own draws begin with in a batch."""

NO_DROPOUT = CaptionSettings(dropout=0.0)


def collate(items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Merge the dictionaries of several samples: tensors stacked, floats as a float32 tensor, the rest as lists."""
    return {name: _stack([item[name] for item in items]) for name in items[0]}


def _stack(values: list[Any]) -> Any:
    if isinstance(values[0], Tensor):
        return torch.stack(values)
    if isinstance(values[0], float):
        return torch.tensor(values, dtype=torch.float32)
    return values


def make_loader(
    dataset: "Dataset[Any]", order: Iterable[list[Any]], num_workers: int = 0, *, pin_memory: bool = False
) -> DataLoader[Any]:
    """A loader that yields one collated dictionary per optimizer step, for the keys that `order` yields.

    Args:
        num_workers: processes that read samples and draw noise in the background; 0 does it in this process.
        pin_memory: put the tensors in page-locked memory, so that copies to a CUDA device do not block.
    """
    return DataLoader(
        dataset,
        batch_sampler=order,  # any iterable of lists of keys works
        collate_fn=collate,
        num_workers=num_workers,
        pin_memory=pin_memory,
        persistent_workers=False,
    )


@dataclass(frozen=True)
class ImageTransform:
    """A sample as pixel values of a fixed size, for evaluation: scaled to cover the size, then center-cropped."""

    height: int
    width: int
    background: tuple[int, int, int] = (255, 255, 255)

    def __call__(self, sample: Sample) -> Tensor:
        """[3, H, W] in [-1, 1].

        Raises:
            UserError: the file is damaged, truncated or not an image.
        """
        return image_to_tensor(resize_and_crop(sample.open(self.background), self.height, self.width))


def draw_flip(sample: Sample, flip: bool, draw: SampleDraw) -> bool:
    """Whether a sample is mirrored this time: with probability 1/2, if flips are on and keep its captions true."""
    return flip and flip_allowed(sample) and noise.uniform(*draw, "flip") < 0.5


class ImageSamples(Dataset[dict[str, Any]]):
    """Samples as pixel values and a caption, with standard normal noise in the shape of their latents.

    Args:
        latent_channels: C of the noise.
        downscale: pixels per latent, along each side.
    """

    def __init__(
        self,
        placed: Sequence[BucketedSample],
        *,
        seed: int,
        flip: bool = False,
        latent_channels: int = 1,
        downscale: int = 8,
    ) -> None:
        self.placed, self.seed, self.flip = placed, seed, flip
        self.latent_channels, self.downscale = latent_channels, downscale

    def __len__(self) -> int:
        return len(self.placed)

    def __getitem__(self, key: SampleKey) -> dict[str, Any]:
        placed = self.placed[key.sample_index]
        sample = placed.sample
        draw = (self.seed, key.epoch, sample.sample_id)
        shape = placed.latent_shape(self.latent_channels, self.downscale)
        return {
            "sample_id": sample.sample_id,
            "pixel_values": placed.pixels(
                placed.crop_at(self.seed, key.epoch), draw_flip(sample, self.flip, draw)
            ),
            "caption": caption_for(sample, NO_DROPOUT, seed=self.seed, epoch=key.epoch),
            "noise": torch.randn(shape, generator=noise.generator_for(*draw, "noise")),
            "weight": key.weight,
            "loss_weight": sample.loss_weight,
        }


ReadImage = Callable[[int, int, bool], Tensor]
"""`read(sample_index, crop, flip)`: the moments [2C, h, w] of that crop of an image, or its pixel values [3, H, W]."""


@dataclass(frozen=True)
class LatentSamples(Dataset[dict[str, Any]]):
    """Samples with every draw that training needs; their images as moments, or as pixel values still to be encoded.

    Attributes:
        placed: the samples and where each is cropped.
        read: reads a variant of the main image.
        kind: what `read` returns, "moments" or "pixel_values"; also its name in the batch.
        latent_channels: C.
        downscale: pixels per latent, along each side.
        masked: whether any sample has a loss mask; samples without one then get a mask of ones.
        extra_noise: also draw the noise that offset noise and input perturbation need.
        images: reads a variant of each image that the task needs, by its `key`. Crop and flip are those of the main
            image.
        texts: the texts that the batch holds besides captions.
        draw: of `TaskInputs`, and `derive` likewise.
        num_variants: the draws of an epoch are those of epoch mod this; 0 makes new ones in every epoch.
        drawn: reads each variant of an image that the task draws, by its name.
        tells_sizes: the batch holds `BucketedSample.told_sizes` of each sample, for denoisers that are told sizes.

    Raises:
        ValueError: an image or text has the name of something else in the batch.
    """

    placed: Sequence[BucketedSample]
    read: ReadImage
    kind: str
    seed: int
    captions: CaptionSettings
    latent_channels: int
    downscale: int
    flip: bool = False
    masked: bool = False
    extra_noise: bool = False
    images: Mapping[str, ReadImage] = field(default_factory=dict)
    texts: tuple[str, ...] = ()
    draw: Callable[[SampleDraw, tuple[int, int]], Mapping[str, Any]] | None = None
    derive: Derive | None = None
    num_variants: int = 0
    drawn: Mapping[str, Sequence[ReadImage]] = field(default_factory=dict)
    tells_sizes: bool = False

    def __post_init__(self) -> None:
        _check_names([*self.images, *self.texts, *self.drawn])

    def __len__(self) -> int:
        return len(self.placed)

    def __getitem__(self, key: SampleKey) -> dict[str, Any]:
        placed = self.placed[key.sample_index]
        sample = placed.sample
        draw = (self.seed, key.epoch, sample.sample_id)
        crop, flip = placed.crop_at(self.seed, key.epoch), draw_flip(sample, self.flip, draw)
        item: dict[str, Any] = {
            "sample_id": sample.sample_id,
            self.kind: self.read(key.sample_index, crop, flip),
            "posterior_noise": self._normal(placed, draw, "posterior"),
            "noise": self._normal(placed, draw, "noise"),
            "position": noise.uniform(*draw, "timestep"),
            "caption": caption_for(sample, self.captions, seed=self.seed, epoch=key.epoch),
            "weight": key.weight,
            "loss_weight": sample.loss_weight,
        }
        if self.tells_sizes:
            item["told_sizes"] = placed.told_sizes(crop, flip)
        if self.masked:
            item["loss_mask"] = placed.mask(crop, flip, self.downscale)
        if self.extra_noise:
            item["perturbation"] = self._normal(placed, draw, "perturbation")
            item["offset"] = torch.randn(self.latent_channels, generator=noise.generator_for(*draw, "offset"))
        item |= {name: read(key.sample_index, crop, flip) for name, read in self.images.items()}
        item |= {name: sample.texts[name] for name in self.texts}
        variant = key.epoch % self.num_variants if self.num_variants else key.epoch
        item |= {name: read[variant](key.sample_index, crop, flip) for name, read in self.drawn.items()}
        drawn = dict(self.draw((self.seed, variant, sample.sample_id), placed.size)) if self.draw else {}
        if self.derive:
            drawn |= self.derive(item[MAIN_INPUT.key], draw)
        return item | {f"{DRAWN}{name}": value for name, value in drawn.items()}

    def _normal(self, placed: BucketedSample, draw: SampleDraw, purpose: str) -> Tensor:
        shape = placed.latent_shape(self.latent_channels, self.downscale)
        return torch.randn(shape, generator=noise.generator_for(*draw, purpose))


def _check_names(names: Sequence[str]) -> None:
    taken = [name for name in names if name in BATCH_NAMES or names.count(name) > 1]
    if taken:
        raise ValueError(f"an image or text cannot be called {taken[0]!r}: a batch already has that name")


def read_pixels(placed: Sequence[BucketedSample]) -> ReadImage:
    """Reads pixel values from the image files, for runs without a cache."""
    return partial(_pixels_of, placed)


def _pixels_of(placed: Sequence[BucketedSample], index: int, crop: int, flip: bool) -> Tensor:
    """Not a lambda, so that the dataset can be pickled for a loader process."""
    return placed[index].pixels(crop, flip)


def read_inputs(placed: Sequence[BucketedSample], wanted: ImageInput) -> ReadImage:
    """Reads the pixel values of an image that the task needs from its file: `BucketedSample.input_pixels`."""
    return partial(_input_of, placed, wanted)


def _input_of(
    placed: Sequence[BucketedSample], wanted: ImageInput, index: int, crop: int, flip: bool
) -> Tensor:
    return placed[index].input_pixels(wanted, crop, flip)


def pixel_batches(placed: Iterable[BucketedSample], batch_size: int = 32) -> Iterator[Tensor]:
    """The pixel values of all samples in order, [B, 3, H, W] with B up to `batch_size`; one size per batch."""
    for _, run in groupby(placed, key=lambda p: p.size):
        same_size = list(run)
        for start in range(0, len(same_size), batch_size):
            yield torch.stack([p.pixels() for p in same_size[start : start + batch_size]])

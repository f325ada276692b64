"""Which samples make which batch, and what each sample is at its turn.

Both are pure functions: the batch of an optimizer step depends on (seed, step) alone, what a sample looks like there on
(seed, epoch, sample id). Nothing depends on the rank, the number of processes or what was drawn before, so a resumed
run sees what an unbroken one sees.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ldm import noise
from ldm.data.captions import caption_for, flip_allowed
from ldm.data.sample import Sample
from ldm.images import image_to_tensor, resize_and_crop


class SampleKey(NamedTuple):
    """One sample's turn: which epoch, which sample, and whether it counts in the loss."""

    epoch: int
    sample_index: int
    weight: float = 1.0


def steps_per_epoch(num_samples: int, global_batch_size: int) -> int:
    """Optimizer steps in which each sample is seen exactly once; the last batch may be smaller."""
    return -(-num_samples // global_batch_size)


def batch_at(step: int, *, seed: int, num_samples: int, global_batch_size: int) -> list[SampleKey]:
    """The global batch of an optimizer step, counted from 0."""
    per_epoch = steps_per_epoch(num_samples, global_batch_size)
    epoch, position = divmod(step, per_epoch)
    order = noise.permutation(num_samples, seed, epoch, "order")
    chosen = order[position * global_batch_size : (position + 1) * global_batch_size]
    return [SampleKey(epoch, index) for index in chosen]


def share_of(batch: Sequence[SampleKey], rank: int, num_processes: int) -> list[SampleKey]:
    """A rank's part of a global batch. A rank left without samples gets one that weighs nothing."""
    return list(batch[rank::num_processes]) or [batch[0]._replace(weight=0.0)]


@dataclass(frozen=True)
class BatchOrder:
    """The batches of one rank from `start_step` to `num_steps`, one an optimizer step."""

    seed: int
    num_samples: int
    global_batch_size: int
    start_step: int
    num_steps: int
    rank: int = 0
    num_processes: int = 1

    def __len__(self) -> int:
        return max(0, self.num_steps - self.start_step)

    def __iter__(self) -> Iterator[list[SampleKey]]:
        for step in range(self.start_step, self.num_steps):
            batch = batch_at(
                step,
                seed=self.seed,
                num_samples=self.num_samples,
                global_batch_size=self.global_batch_size,
            )
            yield share_of(batch, self.rank, self.num_processes)


def collate(items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Dictionaries of one sample each as one dictionary: tensors stacked, numbers as float32, the rest as lists."""
    return {name: _stack([item[name] for item in items]) for name in items[0]}


def _stack(values: list[Any]) -> Any:
    if isinstance(values[0], Tensor):
        return torch.stack(values)
    if isinstance(values[0], float):
        return torch.tensor(values, dtype=torch.float32)
    return values


def make_loader(dataset: "Dataset[Any]", order: BatchOrder, num_workers: int = 0) -> DataLoader[Any]:
    """A loader that yields one collated dictionary an optimizer step."""
    return DataLoader(
        dataset,
        batch_sampler=order,  # any iterable of key lists will do
        collate_fn=collate,
        num_workers=num_workers,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=False,
    )


@dataclass(frozen=True)
class ImageTransform:
    """From a file to pixel values: orient, flatten on the background, scale to cover, crop the middle."""

    height: int
    width: int
    background: tuple[int, int, int] = (255, 255, 255)

    def __call__(self, sample: Sample, *, flip: bool = False) -> Tensor:
        """[3, H, W] in [-1, 1].

        Raises:
            UserError: the file is broken, truncated or no image.
        """
        image = sample.open(self.background)
        pixel_values = image_to_tensor(resize_and_crop(image, self.height, self.width))
        return pixel_values.flip(-1) if flip else pixel_values


class ImageSamples(Dataset[dict[str, Any]]):
    """Samples as pixels and a caption, with standard normal noise of `noise_shape` for whatever needs it."""

    def __init__(
        self,
        samples: Sequence[Sample],
        transform: ImageTransform,
        *,
        seed: int,
        flip: bool = False,
        noise_shape: Sequence[int] = (1,),
    ) -> None:
        self.samples, self.transform = samples, transform
        self.seed, self.flip, self.noise_shape = seed, flip, tuple(noise_shape)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: SampleKey) -> dict[str, Any]:
        sample = self.samples[key.sample_index]
        draw = (self.seed, key.epoch, sample.sample_id)
        return {
            "sample_id": sample.sample_id,
            "pixel_values": self.transform(sample, flip=draw_flip(sample, self.flip, draw)),
            "caption": caption_for(
                sample.captions, seed=self.seed, epoch=key.epoch, sample_id=sample.sample_id, dropout=0.0
            ),
            "noise": torch.randn(self.noise_shape, generator=noise.generator_for(*draw, "noise")),
            "weight": key.weight,
        }


class LatentSamples(Dataset[dict[str, Any]]):
    """Samples as the autoencoder's moments and a caption, with every draw that the DDPM objective needs.

    Args:
        moments: [N, V, 2C, h, w]: mean and log-variance, for the image as it is and (V = 2) mirrored.
        caption_dropout: share of turns on which the caption is empty, which trains the unconditional model.
    """

    def __init__(
        self, samples: Sequence[Sample], moments: Tensor, *, seed: int, caption_dropout: float
    ) -> None:
        self.samples, self.moments = samples, moments
        self.seed, self.caption_dropout = seed, caption_dropout

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: SampleKey) -> dict[str, Any]:
        sample = self.samples[key.sample_index]
        draw = (self.seed, key.epoch, sample.sample_id)
        variant = draw_flip(sample, self.moments.shape[1] > 1, draw)
        moments = self.moments[key.sample_index, int(variant)]
        shape = (moments.shape[0] // 2, *moments.shape[1:])
        return {
            "sample_id": sample.sample_id,
            "moments": moments,
            "posterior_noise": torch.randn(shape, generator=noise.generator_for(*draw, "posterior")),
            "noise": torch.randn(shape, generator=noise.generator_for(*draw, "noise")),
            "position": noise.uniform(*draw, "timestep"),
            "caption": caption_for(
                sample.captions,
                seed=self.seed,
                epoch=key.epoch,
                sample_id=sample.sample_id,
                dropout=self.caption_dropout,
            ),
            "weight": key.weight,
        }


def draw_flip(sample: Sample, flip: bool, draw: tuple[int | str, ...]) -> bool:
    """Whether a sample is mirrored at this turn: half of the turns, where flips are on and leave its caption true."""
    return flip and flip_allowed(sample) and noise.uniform(*draw, "flip") < 0.5


def pixel_batches(
    samples: Sequence[Sample], transform: ImageTransform, batch_size: int = 32
) -> Iterator[Tensor]:
    """Every sample's pixel values in order, [B, 3, H, W] with B at most `batch_size`."""
    for start in range(0, len(samples), batch_size):
        yield torch.stack([transform(sample) for sample in samples[start : start + batch_size]])


def encode_samples(
    samples: Sequence[Sample],
    transform: ImageTransform,
    encode_images: Callable[[Tensor], Tensor],
    *,
    flip: bool,
    batch_size: int = 32,
    on_progress: Callable[[int], None] = lambda _: None,
) -> Tensor:
    """The moments of every sample, [N, V, 2C, h, w] float32; V = 2 (as is, mirrored) with `flip`, else 1."""
    rows: list[Tensor] = []
    for pixel_values in pixel_batches(samples, transform, batch_size):
        variants = [pixel_values, pixel_values.flip(-1)] if flip else [pixel_values]
        rows.append(torch.stack([encode_images(v).float().cpu() for v in variants], dim=1))
        on_progress(sum(map(len, rows)))
    return torch.cat(rows)

"""The share of training captions for which the generated image's nearest training image is the caption's own.

This measures recall and nothing else: a model that copies its training images scores 1. It shows whether a small
model has learned to draw what a caption names.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from ldm.data.batches import ImageTransform
from ldm.data.sample import Sample
from ldm.evaluation.metrics import Share
from ldm.io.images import image_to_tensor
from ldm.noise import permutation
from ldm.pipeline.pipeline import Pipeline


@dataclass(frozen=True)
class Recall:
    """Shares of captions whose own training image is the nearest, or among the five nearest."""

    top_1: Share
    top_5: Share

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, ready for JSON."""
        return {"top_1": self.top_1.to_dict(), "top_5": self.top_5.to_dict()}


def rms_distances(first: Tensor, second: Tensor, size_px: int = 32) -> Tensor:
    """RMS pixel distances, [N, 3, H, W] and [M, 3, H, W] in [-1, 1] -> [N, M], after scaling both to `size_px`."""
    a, b = (_shrink(images, size_px).flatten(1) for images in (first, second))
    distances: Tensor = torch.cdist(a, b) / a.shape[1] ** 0.5
    return distances


def _shrink(images: Tensor, size_px: int) -> Tensor:
    size = (size_px, size_px)
    return functional.interpolate(images, size, mode="bilinear", antialias=True, align_corners=False)


def recall(generated: Tensor, training: Tensor, own: Sequence[int]) -> Recall:
    """Recall of the training images by their captions.

    Args:
        generated: [N, 3, H, W] in [-1, 1], one per caption.
        training: [M, 3, H, W] in [-1, 1].
        own: for each generated image, the row of `training` that its caption belongs to.
    """
    distances = rms_distances(generated, training)
    own_distance = distances[torch.arange(len(own)), torch.tensor(own)]
    rank = (distances < own_distance[:, None]).sum(dim=1)
    return Recall(*(Share(int((rank < best).sum()), len(own)) for best in (1, 5)))


def measure_recall(
    pipeline: Pipeline,
    samples: Sequence[Sample],
    *,
    num_captions: int = 256,
    seed: int = 0,
    settings: Mapping[str, Any] = MappingProxyType({}),
    on_progress: Callable[[int], None] = lambda _: None,
) -> tuple[Recall, list[Image.Image]]:
    """Generate one image for each of `num_captions` random training captions, and find its nearest neighbours.

    Args:
        samples: the training images with their captions; the first caption of each is used.
        seed: selects the captions; the image for caption number i has seed i.
        settings: further arguments of `Pipeline.generate`.
        on_progress: called with the number of images generated so far.

    Returns:
        The recall, and the generated images.
    """
    chosen = permutation(len(samples), seed, "recall")[:num_captions]
    images: list[Image.Image] = []
    for number, index in enumerate(chosen):  # one by one: each image's seed is its number
        images += pipeline.generate(samples[index].text, seed=number, progress=False, **settings).images
        on_progress(len(images))
    transform = ImageTransform(pipeline.defaults.height, pipeline.defaults.width)
    training = torch.stack([transform(sample) for sample in samples])
    generated = torch.stack([image_to_tensor(image) for image in images])
    return recall(generated, training, chosen), images

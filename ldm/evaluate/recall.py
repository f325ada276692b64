"""Of training captions, in how many is the generated picture's nearest training image the right one.

A measure of recall, and of nothing else: a model that copies its training images scores 1. It tells whether a small
model has learned to draw what a caption names.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ldm.evaluate.prompt_following import Share


@dataclass(frozen=True)
class Recall:
    """Shares of captions whose own training image is the nearest, or among the five nearest."""

    top_1: Share
    top_5: Share

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, ready for JSON."""
        return {"top_1": self.top_1.to_dict(), "top_5": self.top_5.to_dict()}


def rms_distances(first: Tensor, second: Tensor, size_px: int = 32) -> Tensor:
    """RMS pixel distance, [N, 3, H, W] and [M, 3, H, W] in [-1, 1] -> [N, M], both scaled to `size_px` first."""
    a, b = (_shrink(images, size_px).flatten(1) for images in (first, second))
    return torch.cdist(a, b) / a.shape[1] ** 0.5


def _shrink(images: Tensor, size_px: int) -> Tensor:
    return functional.interpolate(images, (size_px, size_px), mode="bilinear", antialias=True, align_corners=False)


def recall(generated: Tensor, training: Tensor, own: Sequence[int]) -> Recall:
    """Recall of the training images by their captions.

    Args:
        generated: [N, 3, H, W] in [-1, 1], one a caption.
        training: [M, 3, H, W] in [-1, 1].
        own: for each generated picture the row of `training` that its caption belongs to.
    """
    distances = rms_distances(generated, training)
    own_distance = distances[torch.arange(len(own)), torch.tensor(own)]
    rank = (distances < own_distance[:, None]).sum(dim=1)
    return Recall(*(Share(int((rank < best).sum()), len(own)) for best in (1, 5)))

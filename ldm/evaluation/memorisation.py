"""Which generated images are copies of training images, by thresholds that are calibrated on the data itself.

Thresholds of other data sets do not transfer. Here a distance is suspicious if fewer than 1 % of the training images
have another training image that near. How many true copies such a threshold finds is measured on planted ones: training
images that were scaled, brightened, shifted and saved again.
"""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageEnhance
from torch import Tensor

from ldm.evaluation.metrics import exact_interval

FALSE_ALARMS = 0.01
"""The share of images that are no copies but may be taken for one, by the two distances together."""
LEAST_FOUND = 0.5
"""An audit that finds fewer of the planted copies cannot say that a model makes none."""
BLOCK_ROWS = 1024


def copied(image: Image.Image, number: int) -> Image.Image:
    """A copy as a model might make one: shifted by up to a 64th, a little brighter or darker, saved as JPEG."""
    width, height = image.size
    share = (1 + number % 2) / 128
    box = (share * width, 0, width, height) if number % 4 < 2 else (0, share * height, width, height)
    shifted = image.resize((width, height), Image.Resampling.BICUBIC, box=box)
    brighter = ImageEnhance.Brightness(shifted).enhance(1.06 if number % 2 else 0.94)
    file = io.BytesIO()
    brighter.save(file, "JPEG", quality=70)
    with Image.open(file) as saved:
        return saved.convert("RGB")


@dataclass(frozen=True)
class Nearest:
    """The nearest training image of each image: its index and its distance, [N] each."""

    index: Tensor
    distance: Tensor


def nearest_by_features(features: Tensor, training: Tensor, *, but_itself: bool = False) -> Nearest:
    """By the Euclidean distance of features [N, d] and [M, d].

    Args:
        but_itself: row i of both is the same image, which does not count.
    """
    training = training.double()

    def distances(block: Tensor) -> Tensor:
        return torch.cdist(block.double(), training, compute_mode="donot_use_mm_for_euclid_dist")

    return _nearest(features, distances, but_itself)


def nearest_by_hash(hashes: Tensor, training: Tensor, *, but_itself: bool = False) -> Nearest:
    """By the number of bits in which perceptual hashes differ; hashes are int64, [N] and [M]."""
    others = training.numpy().view(np.uint64)

    def distances(block: Tensor) -> Tensor:
        bits = np.bitwise_count(block.numpy().view(np.uint64)[:, None] ^ others[None])
        return torch.from_numpy(bits.astype(np.float64))

    return _nearest(hashes, distances, but_itself)


def _nearest(items: Tensor, distances: Callable[[Tensor], Tensor], but_itself: bool) -> Nearest:
    """In blocks of rows, so that memory stays linear in the number of images."""
    indices, nearest = [], []
    for start in range(0, len(items), BLOCK_ROWS):
        block = distances(items[start : start + BLOCK_ROWS])
        if but_itself:
            rows = torch.arange(len(block))
            block[rows, start + rows] = torch.inf
        found = block.min(dim=1)
        indices.append(found.indices)
        nearest.append(found.values)
    return Nearest(torch.cat(indices), torch.cat(nearest))


def threshold(of_others: Tensor, share: float) -> float:
    """The largest distance below which at most `share` of these distances are."""
    ordered = of_others.sort().values
    return float(ordered[min(int(share * len(ordered)), len(ordered) - 1)])


@dataclass(frozen=True)
class Audit:
    """What was found.

    Attributes:
        is_copy: [N] whether each generated image is nearer to a training image than the thresholds.
        features, hashes: the nearest training image of each.
        planted_found: the share of the planted copies that the thresholds find.
        false_alarms: the share of the training images that they would take for copies of others.
    """

    is_copy: Tensor
    features: Nearest
    hashes: Nearest
    feature_threshold: float
    hash_threshold: float
    planted_found: float
    num_planted: int
    false_alarms: float

    def to_dict(self) -> dict[str, Any]:
        """Counts with exact binomial intervals, for JSON."""
        number, total = int(self.is_copy.sum()), len(self.is_copy)
        low, high = exact_interval(number, total)
        return {
            "num_copies": number,
            "num_images": total,
            "share": number / total,
            "low": low,
            "high": high,
            "feature_threshold": self.feature_threshold,
            "hash_threshold": self.hash_threshold,
            "planted_found": self.planted_found,
            "num_planted": self.num_planted,
            "false_alarms": self.false_alarms,
        }

    def order(self) -> Sequence[int]:
        """The generated images, the most suspicious first."""
        return [int(i) for i in torch.argsort(self.features.distance, stable=True)]


def audit(generated: dict[str, Tensor], training: dict[str, Tensor], planted: dict[str, Tensor]) -> Audit:
    """Compare generated images with the training images.

    Args:
        generated: `features` [N, d] and `hashes` [N], as `ldm.evaluation.evaluation_job` keeps them; `training` and
            `planted` likewise. Row i of `planted` is a copy of row i of `training`.
    """
    sets = (generated, planted)
    by_features = [nearest_by_features(each["features"], training["features"]) for each in sets]
    by_hashes = [nearest_by_hash(each["hashes"], training["hashes"]) for each in sets]
    others = nearest_by_features(training["features"], training["features"], but_itself=True).distance
    other_bits = nearest_by_hash(training["hashes"], training["hashes"], but_itself=True).distance
    limits = threshold(others, FALSE_ALARMS / 2), threshold(other_bits, FALSE_ALARMS / 2)

    def alarm(features: Tensor, hashes: Tensor) -> Tensor:
        return (features < limits[0]) | (hashes < limits[1])

    found = [alarm(one.distance, other.distance) for one, other in zip(by_features, by_hashes, strict=True)]
    return Audit(
        is_copy=found[0],
        features=by_features[0],
        hashes=by_hashes[0],
        feature_threshold=limits[0],
        hash_threshold=limits[1],
        planted_found=float(found[1].double().mean()),
        num_planted=len(found[1]),
        false_alarms=float(alarm(others, other_bits).double().mean()),
    )

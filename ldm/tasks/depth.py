"""Depth: a model whose UNet takes a depth map as a fifth channel, as Stable Diffusion 2's depth model does.

The map is given as the control image of kind `depth`; no network reads it.

Axis letters: B batch, H W pixels, h w latent size.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ldm.tasks.image_to_image import FROM_IMAGE
from ldm.tasks.task import FROM_NOISE, Encode, Start
from ldm.tasks.text_to_image import TextToImage
from ldm.types import Conditioning

DEPTH = "depth"


@dataclass(frozen=True)
class Depth(TextToImage):
    """Images with the depth of a map, from noise."""

    name: str = DEPTH
    trained_as: str = DEPTH
    can_be_trained: bool = False
    own_control: str = DEPTH
    start: Start = FROM_NOISE

    def concat_channels(self, latent_channels: int) -> int:
        """The depth map."""
        return 1

    def generation_conditioning(
        self, prompt: Conditioning, images: Mapping[str, Tensor], encode: Encode
    ) -> Conditioning:
        """The map given, each scaled to its own range."""
        return replace(prompt, concat=full_range(images[DEPTH]))


@dataclass(frozen=True)
class DepthFromImage(Depth):
    """The same, from an image: its layout is kept by the map at a high strength."""

    name: str = "depth-from-image"
    given: Mapping[str, str] = field(default_factory=lambda: {"image": "image"})
    start: Start = FROM_IMAGE


def latent_map(hint: Tensor, pixels_per_latent: int) -> Tensor:
    """A grey map [B, 3, H, W] at the size of the latents [B, 1, h, w], by bicubic interpolation."""
    size = (hint.shape[-2] // pixels_per_latent, hint.shape[-1] // pixels_per_latent)
    return F.interpolate(hint[:, :1], size=size, mode="bicubic", align_corners=False)


def full_range(depth: Tensor) -> Tensor:
    """Maps [B, 1, h, w], each scaled so that its smallest value is -1 and its largest 1; a constant one is 0."""
    low, high = depth.amin(dim=(1, 2, 3), keepdim=True), depth.amax(dim=(1, 2, 3), keepdim=True)
    spread = high - low
    scaled = 2 * (depth - low) / torch.where(spread > 0, spread, 1) - 1
    return torch.where(spread > 0, scaled, 0.0)

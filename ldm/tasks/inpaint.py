"""Inpainting: the white part of a mask is made anew to fit a prompt and the rest of the image.

Axis letters: B batch, C latent channels, H W pixels, h w latent size.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ldm.data.random_masks import VERSION, draw_mask
from ldm.data.sample import MAIN_INPUT, DrawnImage, TaskInputs
from ldm.tasks.task import Encode, Start, TrainingInputs
from ldm.tasks.text_to_image import TextToImage
from ldm.types import Conditioning

GIVEN = {"image": "image", "mask": "mask"}
BLENDED = Start(image="image", mask="mask", blends=True)
IN_THE_MASK = Start(image="image", mask="mask")


def masked_image(pixel_values: Tensor, drawn: Mapping[str, Any]) -> Tensor:
    """An image [3, H, W] with a grey hole where the drawn mask [1, H, W] is 1."""
    masked: Tensor = pixel_values * (1 - drawn["mask"])
    return masked


MASKED = "masked_image"
MASKED_IMAGE = TaskInputs(
    images=(MAIN_INPUT,), draw=draw_mask, drawn_image=DrawnImage(MASKED, masked_image, VERSION)
)


@dataclass(frozen=True)
class BlendedInpaint(TextToImage):
    """With any text-to-image model: the known latents are put back, noised, after every step."""

    name: str = "blended-inpaint"
    given: Mapping[str, str] = field(default_factory=lambda: GIVEN)
    start: Start = BLENDED


@dataclass(frozen=True)
class Inpaint(TextToImage):
    """With a model trained for it, whose UNet also takes the mask and the latents of the image without its hole.

    As in Stable Diffusion's inpainting models (Rombach et al. 2022, section 4.5), the hole is grey, and 1 + C channels
    are added: the mask, then the latents.
    """

    name: str = "inpaint"
    trained_as: str = "inpaint"
    inputs: TaskInputs = MASKED_IMAGE
    encodes_in_training: bool = True
    given: Mapping[str, str] = field(default_factory=lambda: GIVEN)
    start: Start = IN_THE_MASK

    def concat_channels(self, latent_channels: int) -> int:
        """The mask and the latents."""
        return 1 + latent_channels

    def training_conditioning(self, prompt: Conditioning, inputs: TrainingInputs) -> Conditioning:
        """Masks are drawn for each sample, see `draw_mask`; the masked image is encoded here, or cached."""
        mask, cached = inputs.drawn["mask"], inputs.latents.get(MASKED)
        if cached is not None:
            return with_mask(prompt, mask, cached)
        return mask_conditioning(prompt, inputs.pixel_values["image"], mask, inputs.encode)

    def generation_conditioning(
        self, prompt: Conditioning, images: Mapping[str, Tensor], encode: Encode
    ) -> Conditioning:
        """The mask and the image given."""
        return mask_conditioning(prompt, images["image"], images["mask"], encode)


def mask_conditioning(prompt: Conditioning, image: Tensor, mask: Tensor, encode: Encode) -> Conditioning:
    """The prompt with [mask, latents of the masked image] as channels.

    Args:
        image: [B, 3, H, W] in [-1, 1].
        mask: [B, 1, H, W], 1 where the image is made anew.
    """
    return with_mask(prompt, mask, encode(image * (1 - mask)))


def with_mask(prompt: Conditioning, mask: Tensor, masked_latents: Tensor) -> Conditioning:
    """The prompt with [mask, latents [B, C, h, w] of the masked image] as channels.

    Args:
        mask: [B, 1, H, W], 1 where the image is made anew. A latent is masked if any of its pixels is.
    """
    pixels_per_latent = mask.shape[-1] // masked_latents.shape[-1]
    small_mask = F.max_pool2d(mask, pixels_per_latent)
    return replace(prompt, concat=torch.cat([small_mask, masked_latents], dim=1))

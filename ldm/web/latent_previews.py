"""Previews of unfinished images: a linear map from latents to colours in place of the autoencoder.

Axis letters: B batch, C latent channels, h w latent size.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ldm.io.images import tensor_to_images
from ldm.io.png import with_chunks
from ldm.provenance.marks import mark_texts

_NUM_FITTED, _BLOBS, _SIDE = 4, 4, 16


@torch.no_grad()
def fit_colors(decode: Callable[[Tensor], Tensor], num_channels: int, device: torch.device) -> Tensor:
    """The matrix [C + 1, 3] that maps a latent, and a constant 1, to the mean colour of its pixels.

    Found by least squares on smooth random latents, from a separate generator, so no image changes.

    Args:
        decode: latents [B, C, h, w] to pixel_values [B, 3, H, W].
    """
    generator = torch.Generator().manual_seed(0)
    blobs = torch.randn(_NUM_FITTED, num_channels, _BLOBS, _BLOBS, generator=generator)
    latents = F.interpolate(blobs, (_SIDE, _SIDE), mode="bilinear").to(device)
    colors = F.adaptive_avg_pool2d(decode(latents), (_SIDE, _SIDE))
    found: Tensor = torch.linalg.lstsq(_rows(latents).cpu(), _pixels(colors).cpu()).solution
    return found


def _pixels(values: Tensor) -> Tensor:
    """[B, C, h, w] as [B h w, C]."""
    return values.float().permute(0, 2, 3, 1).flatten(0, 2)


def _rows(latents: Tensor) -> Tensor:
    """Latents [B, C, h, w] as [B h w, C + 1], with a constant 1."""
    return F.pad(_pixels(latents), (0, 1), value=1.0)


def preview_images(latents: Tensor, colors: Tensor) -> list[Image.Image]:
    """B small RGB images of latents [B, C, h, w], a pixel for each latent."""
    batch, _, height, width = latents.shape
    mapped = (_rows(latents).cpu() @ colors).reshape(batch, height, width, 3).permute(0, 3, 1, 2)
    return tensor_to_images(mapped.nan_to_num())


def preview_file(image: Image.Image, source_type: str) -> bytes:
    """A preview as a PNG that says that an AI made it. It is not signed: signing takes longer than a step.

    Args:
        source_type: `MADE` or `EDITED` of `ldm.provenance.marks`.
    """
    return with_chunks(image, mark_texts(source_type))

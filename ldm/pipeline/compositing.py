"""Put an inpainted image together: the pixels outside the mask are the original's, to the last bit.

An autoencoder changes every pixel a little, so a decoded image never has the original's pixels anywhere.

Axis letters: H W pixels.
"""

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ldm.pipeline.batches import ImageRequest, PlannedBatch
from ldm.pipeline.input_images import fitted, mask_values

RING_PX = 16
"""How far around the mask the colours of the original and the generated image are compared."""


def completed_image(request: ImageRequest, batch: PlannedBatch, made: Image.Image) -> Image.Image:
    """The decoded image cut to its size, and with a mask, the original around it."""
    settings, start = batch.settings, batch.task.start
    height, width = settings.height, settings.width
    if made.size != (width, height):
        made = made.crop((0, 0, width, height))
    if start.image is None or start.mask is None:
        return made
    original = fitted(request.inputs[start.image].open(), height, width)
    mask = mask_values(request.inputs[start.mask].open(), height, width, 1)
    return composite(
        original, made, mask, feather_px=settings.mask_feather, match_colors=settings.match_colors
    )


def composite(
    original: Image.Image,
    made: Image.Image,
    mask: Tensor,
    *,
    feather_px: int = 0,
    match_colors: bool = False,
) -> Image.Image:
    """The generated image where the mask is 1, the original where it is 0; all of H x W pixels, RGB.

    Args:
        mask: [1, H, W], 0 or 1.
        feather_px: how far inside the mask's edge the two are blended.
        match_colors: shift the generated image by the mean difference of the two just outside the mask.
    """
    old, new = (np.asarray(image, dtype=np.float32) for image in (original, made))
    if match_colors:
        new = new + color_shift(old, new, mask)
    share = feathered(mask, feather_px)[0, :, :, None].numpy()
    blended = np.clip(np.rint(share * new + (1 - share) * old), 0, 255).astype(np.uint8)
    inside = mask[0, :, :, None].numpy() > 0
    return Image.fromarray(np.where(inside, blended, np.asarray(original)))


def feathered(mask: Tensor, feather_px: int) -> Tensor:
    """The mask with an edge that rises linearly to 1 over `feather_px` pixels inside it; 0 wherever the mask is 0.

    The value is the mean of the mask eroded by 0, 1, ... `feather_px` pixels.
    """
    eroded = [mask]
    for _ in range(feather_px):
        eroded.append(-F.max_pool2d(-eroded[-1], 3, stride=1, padding=1))
    return torch.stack(eroded).mean(dim=0)


def color_shift(old: NDArray[np.float32], new: NDArray[np.float32], mask: Tensor) -> NDArray[np.float32]:
    """The mean of `old` - `new` per channel, [3], over the pixels within `RING_PX` of the mask but not in it."""
    near = F.max_pool2d(mask, 2 * RING_PX + 1, stride=1, padding=RING_PX)
    ring = ((near > 0) & (mask == 0))[0].numpy()
    if not ring.any():
        return np.zeros(3, dtype=np.float32)
    shift: NDArray[np.float32] = (old[ring] - new[ring]).mean(axis=0, dtype=np.float64).astype(np.float32)
    return shift

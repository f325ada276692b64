"""Between latents and images: as many at once as fit in memory, and an image too large for that in tiles."""

import torch
from PIL import Image
from torch import Tensor

from ldm.errors import UserError, warn
from ldm.io import memory
from ldm.io.images import tensor_to_images
from ldm.models.unet import UNetDenoiser
from ldm.models.vae import KLAutoencoder

SHARE_TAKEN = 0.5
"""Share of the free memory to use: the estimate is rough, and other programs need memory too."""


def decode_images(
    autoencoder: KLAutoencoder, latents: Tensor, *, one_by_one: bool = False
) -> tuple[list[Image.Image], bool]:
    """Decode latents [B, C, h, w]; an image's pixels are the same within 1/255 whatever it is decoded with.

    Args:
        one_by_one: decode one image at a time even if more would fit.

    Returns:
        The images, and whether they were decoded in tiles, which changes them a little.

    Warns:
        LdmWarning: a single image does not fit, so it is decoded in tiles.
    """
    needed, free = (
        autoencoder.decoding_bytes(*latents.shape[2:]),
        SHARE_TAKEN * free_memory_bytes(latents.device),
    )
    at_once = 1 if one_by_one else max(1, min(len(latents), int(free // needed)))
    in_tiles = needed > free and autoencoder.has_tiles(*latents.shape[2:])
    if in_tiles:
        warn(
            f"an image needs about {needed / 1e9:.1f} GB to decode, so it is decoded in tiles: "
            "they are blended, and differ a little from an image decoded at once"
        )
    decoded = (autoencoder.decode(part, in_tiles=in_tiles) for part in torch.split(latents, at_once))
    return [image for pixels in decoded for image in tensor_to_images(pixels)], in_tiles


def encodes_in_tiles(autoencoder: KLAutoencoder, height: int, width: int, device: torch.device) -> bool:
    """Whether an image that gives latents of h x w is encoded in tiles, as it does not fit in memory at once.

    Warns:
        LdmWarning: it is.
    """
    needed = autoencoder.encoding_bytes(height, width)
    if needed <= SHARE_TAKEN * free_memory_bytes(device) or not autoencoder.has_tiles(height, width):
        return False
    warn(
        f"an image given needs about {needed / 1e9:.1f} GB to encode, so it is encoded in tiles: "
        "their latents are blended, and differ a little from those of an image encoded at once"
    )
    return True


def encode_images(
    autoencoder: KLAutoencoder, pixel_values: Tensor, *, one_by_one: bool = False, in_tiles: bool = False
) -> Tensor:
    """The moments [B, 2C, h, w] of images [B, 3, H, W] in [-1, 1], as many at once as fit in memory.

    Args:
        one_by_one: encode one image at a time even if more would fit.
        in_tiles: as `encodes_in_tiles` says.
    """
    height, width = (side // autoencoder.pixels_per_latent for side in pixel_values.shape[2:])
    free = SHARE_TAKEN * free_memory_bytes(pixel_values.device)
    fitting = free // autoencoder.encoding_bytes(height, width)
    at_once = 1 if one_by_one else max(1, int(min(len(pixel_values), fitting)))
    parts = torch.split(pixel_values, at_once)
    return torch.cat([autoencoder.encode(part, in_tiles=in_tiles) for part in parts])


def free_memory_bytes(device: torch.device) -> float:
    """Memory that is free on a device now; infinite if the system does not say."""
    if device.type == "cuda":
        reserved = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return float(torch.cuda.mem_get_info(device)[0] + reserved)
    return memory.free_memory_bytes()


def check_image_fits(
    denoiser: UNetDenoiser, height: int, width: int, pixels_per_latent: int, tile_size: int = 0
) -> None:
    """Refuse an image that cannot fit in memory before the first step.

    What is counted is the least that one needs: in the denoiser four maps of the first level for a row, and the pixels,
    decoded in tiles. Most images need more.

    Args:
        height: of the image in pixels, as `width`.
        tile_size: of the windows that the denoiser works in; 0 for the whole image.

    Raises:
        UserError: naming the size and both amounts.
    """
    weights = denoiser.unet.conv_in.weight
    rows, columns = (min(side, tile_size or side) // pixels_per_latent for side in (height, width))
    numbers = 4 * len(weights) * rows * columns
    needed, free = (
        numbers * weights.dtype.itemsize + 2 * 3 * 4 * height * width,
        free_memory_bytes(weights.device),
    )
    if needed > free:
        said = f"an image of {height} x {width} pixels needs at least {memory.gigabytes(needed)} of memory"
        raise UserError(f"{said}, {memory.gigabytes(free)} are free", "ask for a smaller one")

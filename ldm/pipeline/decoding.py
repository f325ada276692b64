"""From latents to pictures in pieces that the memory holds: some pictures at once, and a large one in tiles."""

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from ldm.errors import warn
from ldm.io.images import tensor_to_images
from ldm.models.vae import KLAutoencoder

SHARE_TAKEN = 0.5
"""Of the free memory: the estimate is rough, and other programs work too."""


def decode_images(
    autoencoder: KLAutoencoder, latents: Tensor, *, one_by_one: bool = False
) -> tuple[list[Image.Image], bool]:
    """Decode latents [B, C, h, w]; a picture is the same in whatever company.

    Args:
        one_by_one: whatever the memory would hold.

    Returns:
        The pictures; and whether they were decoded in tiles, which changes them a little.

    Warns:
        LdmWarning: one picture alone does not fit, so it is decoded in tiles.
    """
    needed, free = (
        autoencoder.decoding_bytes(*latents.shape[2:]),
        SHARE_TAKEN * free_memory_bytes(latents.device),
    )
    at_once = 1 if one_by_one else max(1, min(len(latents), int(free // needed)))
    in_tiles = needed > free and autoencoder.has_tiles(*latents.shape[2:])
    if in_tiles:
        said = f"a picture needs about {needed / 1e9:.1f} GB to decode, so it is decoded in tiles"
        warn(f"{said}: they blend, and differ a little from one whole")
    decoded = (autoencoder.decode(part, in_tiles=in_tiles) for part in torch.split(latents, at_once))
    return [image for pixels in decoded for image in tensor_to_images(pixels)], in_tiles


def free_memory_bytes(device: torch.device) -> float:
    """Memory that a device could give now; without a bound where the system does not tell."""
    if device.type == "cuda":
        reserved = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return float(torch.cuda.mem_get_info(device)[0] + reserved)
    told = Path("/proc/meminfo")
    lines = told.read_text().splitlines() if told.exists() else []
    found = [int(line.split()[1]) * 1024.0 for line in lines if line.startswith("MemAvailable:")]
    return found[0] if found else float("inf")

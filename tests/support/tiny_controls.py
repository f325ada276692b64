"""Random control networks for tiny models, and control images."""

from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ldm.models.control.controlnet import fresh_controlnet
from ldm.models.loading.components import save_network
from ldm.models.loading.model import ModelParts
from tests.support.tiny_images import photo


def make_controlnet(parts: ModelParts, seed: int = 1) -> Any:
    """A ControlNet for the model whose weights are all random, so that it changes images."""
    torch.manual_seed(seed)
    net = fresh_controlnet(parts.denoiser.unet, parts.autoencoder.pixels_per_latent)
    for parameter in net.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.3)
    return net.eval().requires_grad_(False)


def save_controlnet(net: Any, folder: Path) -> Path:
    save_network(net, folder, torch.float32, "10GB")
    return folder


def hints(count: int = 2, size: int = 16) -> list[Image.Image]:
    """Different grey maps, as RGB images."""
    return [photo(size, size, seed=10 + number).convert("L").convert("RGB") for number in range(count)]

"""From latents to a picture: our autoencoder against diffusers' pipeline, on the same weights and latents."""

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from .models import MEDIUM, SMALLEST, Shape, make_model
from .rows import result_of, row_of, taken_of
from .samples import Scale, Setting, machine, matmul_gflops
from .workers import Answer, Work, repeated, take_turns

SIZES: Mapping[Scale, tuple[Shape, int]] = {
    "full": (replace(MEDIUM, unet_channels=SMALLEST.unet_channels, attends=SMALLEST.attends), 256),
    "quick": (replace(MEDIUM, unet_channels=SMALLEST.unet_channels, attends=SMALLEST.attends), 128),
    "smallest": (SMALLEST, 64),
}
"""The autoencoder is Stable Diffusion's; the other components do not matter here."""


def decode(setting: Setting) -> dict[str, Any]:
    """Both sides decode the same latents of a picture."""
    shape, size_px = SIZES[setting.scale]
    with tempfile.TemporaryDirectory() as folder:
        model = str(make_model(Path(folder), shape, size_px))
        sides = {
            "diffusers": repeated(make_theirs, model, size_px, setting.device),
            "ldm": repeated(make_ours, model, size_px, setting.device),
        }
        taken = take_turns(sides, setting.rounds, setting.device)
    rows = [row_of(f"decoding, {size_px} px", taken, "ldm", "diffusers")]
    return result_of(
        "decode",
        rows,
        device=setting.device,
        sides=taken_of(taken),
        matmul_gflops=matmul_gflops(setting.device),
        machine=machine(),
    )


def latents_of(size_px: int, device: str) -> Any:
    import torch

    shape = (1, 4, size_px // 8, size_px // 8)
    return torch.randn(shape, generator=torch.Generator("cpu").manual_seed(0)).to(device)


def make_theirs(model: str, size_px: int, device: str) -> Work:
    """As `StableDiffusionPipeline` ends."""
    import torch
    from diffusers import AutoencoderKL
    from diffusers.image_processor import VaeImageProcessor

    vae = AutoencoderKL.from_pretrained(model, subfolder="vae", torch_dtype=torch.float32).to(device).eval()
    processor, latents = VaeImageProcessor(vae_scale_factor=8), latents_of(size_px, device)

    @torch.no_grad()
    def work(warming_up: bool) -> tuple[Answer, dict[str, float]]:
        pixels = vae.decode(latents / vae.config.scaling_factor, return_dict=False)[0]
        processor.postprocess(pixels, output_type="pil")
        return pixels.cpu().numpy(), {}

    return work


def make_ours(model: str, size_px: int, device: str) -> Work:
    """As `Pipeline.generate` ends."""
    import torch

    from ldm.io.images import tensor_to_images
    from ldm.models.loading.components import load_vae
    from ldm.models.vae import KLAutoencoder

    vae = load_vae(Path(model) / "vae", torch.float32).to(device).eval()
    autoencoder, latents = KLAutoencoder(vae), latents_of(size_px, device)

    @torch.no_grad()
    def work(warming_up: bool) -> tuple[Answer, dict[str, float]]:
        pixels = autoencoder.decode(latents)
        tensor_to_images(pixels)
        return pixels.cpu().numpy(), {}

    return work

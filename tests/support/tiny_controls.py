"""Random control networks for tiny models, and control images."""

from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from ldm.models.control.controlnet import fresh_controlnet
from ldm.models.control.load_ip_adapter import attention_shapes
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


def make_encoder() -> Any:
    """A random CLIP image encoder."""
    torch.manual_seed(4)
    config = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=8,
        projection_dim=24,
    )  # fmt: skip
    return CLIPVisionModelWithProjection(config).eval().requires_grad_(False)


def ip_weights(parts: ModelParts, kind: str, seed: int = 5) -> dict[str, torch.Tensor]:
    """A random IP-Adapter: base, or plus with a resampler of one layer."""
    generator = torch.Generator().manual_seed(seed)
    width = parts.denoiser.text_width

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator) * shape[-1] ** -0.5

    names = {
        f"ip_adapter.{name}": normal(*shape) for name, shape in attention_shapes(parts.denoiser.unet).items()
    }
    norm = {"weight": torch.ones(width), "bias": torch.zeros(width)}
    if kind == "base":
        proj = {"proj.weight": normal(4 * width, 24), "proj.bias": normal(4 * width)}
        return names | {
            f"image_proj.{n}": t for n, t in {**proj, **{f"norm.{k}": v for k, v in norm.items()}}.items()
        }
    inner, ones, zeros = 64, torch.ones, torch.zeros
    plus = {
        "latents": normal(1, 3, inner),
        "proj_in.weight": normal(inner, 32), "proj_in.bias": normal(inner),
        "proj_out.weight": normal(width, inner), "proj_out.bias": normal(width),
        "norm_out.weight": ones(width), "norm_out.bias": zeros(width),
    }  # fmt: skip
    for layer in range(4):
        plus |= {
            f"layers.{layer}.0.norm1.weight": ones(inner), f"layers.{layer}.0.norm1.bias": zeros(inner),
            f"layers.{layer}.0.norm2.weight": ones(inner), f"layers.{layer}.0.norm2.bias": zeros(inner),
            f"layers.{layer}.0.to_q.weight": normal(inner, inner),
            f"layers.{layer}.0.to_kv.weight": normal(2 * inner, inner),
            f"layers.{layer}.0.to_out.weight": normal(inner, inner),
            f"layers.{layer}.1.0.weight": ones(inner), f"layers.{layer}.1.0.bias": zeros(inner),
            f"layers.{layer}.1.1.weight": normal(4 * inner, inner),
            f"layers.{layer}.1.3.weight": normal(inner, 4 * inner),
        }  # fmt: skip
    return names | {f"image_proj.{name}": tensor for name, tensor in plus.items()}

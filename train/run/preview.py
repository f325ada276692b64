"""Images generated during training."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from ldm.io.images import image_grid
from ldm.models.loading.model import ModelParts
from ldm.pipeline.pipeline import Pipeline

from ..loop.validation import evaluating
from ..settings.denoiser import PreviewSettings


def write_preview(
    parts: ModelParts,
    settings: PreviewSettings,
    prompts: Sequence[str],
    path: Path,
    device: torch.device,
    *,
    writes: bool = True,
) -> None:
    """Generate an image for each prompt and write them to `path` as a grid; image i has seed i.

    Args:
        writes: whether this process writes it; if the network is sharded, every process must call this.
    """
    with on_device(parts, device), evaluating(parts.denoiser), evaluating(parts.text_encoder):
        made = Pipeline(parts, model_id="preview").generate(
            prompts, num_inference_steps=settings.num_inference_steps, guidance_scale=settings.guidance_scale
        )
    if writes:
        image_grid(made.images, num_columns=min(8, len(made.images))).save(path)


@contextmanager
def on_device(parts: ModelParts, device: torch.device) -> Iterator[None]:
    """Inside the block the encoders are on the device, which they leave once their outputs are cached.

    An encoder that is already there is not moved: `to` would reshard a network that was gathered.
    """
    encoders: tuple[nn.Module, ...] = (parts.autoencoder, parts.text_encoder)
    away = [(each, place) for each in encoders if (place := _device_of(each)).type != device.type]
    for encoder, _ in away:
        encoder.to(device)
    try:
        yield
    finally:
        for encoder, place in away:
            encoder.to(place)


def _device_of(module: nn.Module) -> torch.device:
    return next(module.parameters()).device

"""Pictures drawn during training."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from ldm.data.captions import plain_caption
from ldm.data.prepare import BucketedSample
from ldm.io.images import image_grid
from ldm.models.loading.model import ModelParts
from ldm.pipeline.pipeline import Pipeline

from ..loop.validation import evaluating
from ..settings.denoiser import DenoiserSettings


def write_preview(
    parts: ModelParts,
    settings: DenoiserSettings,
    placed: Sequence[BucketedSample],
    path: Path,
    device: torch.device,
    *,
    writes: bool = True,
) -> None:
    """A row of pictures of the preview prompts, image i from seed i.

    Args:
        writes: whether this process writes them; where the network is sharded, every process must call this.
    """
    chosen = settings.preview
    prompts = chosen.prompts or tuple(plain_caption(one.sample, settings.captions) for one in placed[:8])
    with on_device(parts, device), evaluating(parts.denoiser), evaluating(parts.text_encoder):
        made = Pipeline(parts, model_id="preview").generate(
            prompts, num_inference_steps=chosen.num_inference_steps, guidance_scale=chosen.guidance_scale
        )
    if writes:
        image_grid(made.images, num_columns=min(8, len(made.images))).save(path)


@contextmanager
def on_device(parts: ModelParts, device: torch.device) -> Iterator[None]:
    """The encoders, which leave the device once their answers are cached, come back to it inside the block.

    One that is there is not touched: `to` would cut up again what is gathered of a sharded network.
    """
    encoders: tuple[nn.Module, ...] = (parts.autoencoder, parts.text_encoder)
    away = [(each, place) for each in encoders if (place := _place(each)).type != device.type]
    for encoder, _ in away:
        encoder.to(device)
    try:
        yield
    finally:
        for encoder, place in away:
            encoder.to(place)


def _place(module: nn.Module) -> torch.device:
    return next(module.parameters()).device

"""IP-Adapter (Ye et al. 2023): images as prompts, by a second cross-attention beside that to the text.

The layers are diffusers' own; `image_prompts_in` puts them into a UNet for one sampling. Axis letters as in
`ldm.types`.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ldm.errors import UserError

PROJECTION, ATTENTION = "image_proj", "ip_adapter"
"""The two parts of an IP-Adapter's file: what makes tokens of an image, and the attention to them."""

Scale = float | dict[str, Any]
"""A number for all blocks, or diffusers' tree of scales such as `{"up": {"block_0": 1.0}}`, 0 elsewhere."""


@dataclass(frozen=True)
class IPAdapter:
    """An IP-Adapter as read from its file.

    Attributes:
        name: of the file, without a path.
        weights: of its two parts, by name.
    """

    name: str
    sha256: str
    weights: Mapping[str, Mapping[str, Tensor]]

    @property
    def uses_hidden_states(self) -> bool:
        """Whether it reads the image encoder's last but one layer (plus, full face) and not its output."""
        return "proj.weight" not in self.weights[PROJECTION]


@dataclass(frozen=True)
class ImagePrompts:
    """The IP-Adapters of a model, and the encoder of the images that they take.

    Attributes:
        encoder: a transformers `CLIPVisionModelWithProjection`.
        processor: transformers' `CLIPImageProcessor`: the short side to the encoder's size, then a centre crop.
    """

    adapters: tuple[IPAdapter, ...]
    encoder: Any
    processor: Any

    def adapters_for(self, num_references: int) -> tuple[IPAdapter, ...]:
        """The adapter of each reference image: one for all, or one each, in order.

        Raises:
            UserError: the numbers differ.
        """
        if len(self.adapters) == 1:
            return self.adapters * num_references
        if len(self.adapters) != num_references:
            raise UserError(
                f"{num_references} reference images for {len(self.adapters)} IP-Adapters",
                "give one adapter for all, or as many references, in the same order",
            )
        return self.adapters

    @torch.no_grad()
    def embed(self, adapter: IPAdapter, images: Sequence[Image.Image]) -> tuple[Tensor, Tensor]:
        """What the adapter reads of B images, and of none, for the negative branch: [B, 1, ...] and [1, 1, ...]."""
        parameter = next(self.encoder.parameters())
        pixels = self.processor(list(images), return_tensors="pt").pixel_values.to(parameter)
        if not adapter.uses_hidden_states:
            found: Tensor = self.encoder(pixels).image_embeds[:, None]
            return found, torch.zeros_like(found[:1])
        rows = torch.cat([pixels, torch.zeros_like(pixels[:1])])
        hidden = self.encoder(rows, output_hidden_states=True).hidden_states[-2][:, None]
        return hidden[:-1], hidden[-1:]


@contextmanager
def image_prompts_in(
    unet: Any, prompts: ImagePrompts, adapters: Sequence[IPAdapter], scales: Sequence[Scale]
) -> Iterator[None]:
    """Inside the block the UNet attends to image prompts, one for each adapter; afterwards it is as before."""
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline

    before = dict(unet.attn_processors)
    around = StableDiffusionPipeline(  # diffusers loads IP-Adapters through a pipeline
        vae=None,
        text_encoder=None,
        tokenizer=None,
        unet=unet,
        scheduler=None,
        safety_checker=None,
        feature_extractor=prompts.processor,
        image_encoder=prompts.encoder,
        requires_safety_checker=False,
    )
    given = [{part: dict(tensors) for part, tensors in each.weights.items()} for each in adapters]
    names = [""] * len(given)
    try:
        around.load_ip_adapter(given, subfolder=names, weight_name=names)
        around.set_ip_adapter_scale(list(scales))
        yield
    finally:
        around.unload_ip_adapter()
        unet.set_attn_processor(before)

"""The denoiser: a diffusers `UNet2DConditionModel` with the interface of `ldm.types.Denoiser`."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from ldm.errors import UserError
from ldm.types import Conditioning, Step

SUPPORTED = {
    "addition_embed_type": (None, "text_time"),
    "class_embed_type": (None, "timestep", "identity"),
    "encoder_hid_dim_type": (None, "ip_image_proj"),
}
"""Config keys for inputs besides latents, timesteps and text, and their supported values."""


class UNetDenoiser(nn.Module):
    """`denoiser(latents [B,C,h,w], timesteps [B], conditioning) -> model_pred [B,C,h,w]`.

    A UNet that has learned a variance returns [B, 2C, h, w]. The output has the dtype of the latents; the UNet computes
    in the dtype of its weights.

    Attributes:
        unet: the diffusers model; this is the module that is trained, saved and loaded.
        latent_channels: C, the number of channels of the latents and the noise.
    """

    def __init__(self, unet: Any, *, latent_channels: int | None = None) -> None:
        """Without `latent_channels`, they are the UNet's output channels, or its input channels if those are fewer, as
        with a learned variance.

        Raises:
            UserError: the UNet needs an unsupported input.
        """
        super().__init__()
        for key, known in SUPPORTED.items():
            if (value := unet.config.get(key)) not in known:
                raise UserError(f"unet/config.json has {key} {value!r}", "such UNets are not supported")
        self.unet = unet
        fewer = min(int(unet.config.in_channels), int(unet.config.out_channels))
        self.latent_channels = latent_channels or fewer

    @property
    def input_channels(self) -> int:
        """Channels of the UNet's input: those of the latents and those of `Conditioning.concat`."""
        return int(self.unet.config.in_channels)

    @property
    def concat_channels(self) -> int:
        """K, the required number of channels of `Conditioning.concat`; 0 for text-to-image."""
        return self.input_channels - self.latent_channels

    @property
    def embeds_guidance(self) -> bool:
        """Whether it is told the guidance scale (`Conditioning.guidance_scale`), as distilled UNets are."""
        return self.unet.config.time_cond_proj_dim is not None

    @property
    def num_class_labels(self) -> int:
        """How many class labels its table has: `Conditioning.class_labels` are 0 to one less; 0 without a table."""
        return int(self.unet.config.num_class_embeds or 0)

    @property
    def needs_more_than_text(self) -> bool:
        """Whether it needs more than a prompt: extra channels, class labels, SDXL's time ids or image prompts."""
        added = self.concat_channels or self.num_class_labels or self.needs_time_ids
        return bool(added) or self.needs_more_than_images

    @property
    def needs_more_than_sizes(self) -> bool:
        """Whether it needs more than a prompt and the time ids and pooled text embedding beside it."""
        return bool(self.concat_channels or self.num_class_labels) or self.needs_more_than_images

    def pooled_width(self, num_time_ids: int) -> int:
        """P, the width of the pooled text embedding beside so many time ids, for a UNet that needs them."""
        config = self.unet.config
        return int(
            config.projection_class_embeddings_input_dim - num_time_ids * config.addition_time_embed_dim
        )

    @property
    def needs_time_ids(self) -> bool:
        """Whether it needs SDXL's time ids and a pooled text embedding."""
        return self.unet.config.addition_embed_type is not None

    @property
    def needs_more_than_images(self) -> bool:
        """Whether it needs image prompts, or class labels that are not in a table."""
        has_labels = self.unet.class_embedding is not None and not self.num_class_labels
        return self.unet.config.encoder_hid_dim_type is not None or has_labels

    @property
    def text_width(self) -> int:
        """D, the width of the prompt embeddings."""
        width = self.unet.config.cross_attention_dim
        return int(width if isinstance(width, int) else width[0])

    def forward(
        self, latents: Tensor, timesteps: Tensor, conditioning: Conditioning, *, step: Step | None = None
    ) -> Tensor:
        dtype = self.unet.conv_in.weight.dtype
        output: Tensor = self.unet(
            with_concat(latents.to(dtype), conditioning),
            timesteps,
            encoder_hidden_states=conditioning.prompt_embeds.to(dtype),
            encoder_attention_mask=conditioning.attention_mask,
            class_labels=conditioning.class_labels,
            timestep_cond=guidance_embedding(self.unet, conditioning, dtype),
            added_cond_kwargs=added_conditions(conditioning, dtype),
            **_residuals(conditioning, dtype),
            return_dict=False,
        )[0]
        # always copy: with CUDA graphs the next call overwrites the output, which some samplers keep
        return output.to(latents.dtype, copy=True)


def with_concat(latents: Tensor, conditioning: Conditioning) -> Tensor:
    """The UNet's input [B, C + K, h, w]: the latents concatenated with `Conditioning.concat`, if set."""
    if conditioning.concat is None:
        return latents
    return torch.cat([latents, conditioning.concat.to(latents.dtype)], dim=1)


def added_conditions(conditioning: Conditioning, dtype: torch.dtype) -> dict[str, Any] | None:
    """diffusers' `added_cond_kwargs`: SDXL's pooled text and time ids, and image prompts; None if there are none.

    Time ids stay in float32 until the UNet has computed their sinusoidal embedding: half precision would round sizes.
    """
    found: dict[str, Any] = {}
    if conditioning.time_ids is not None:
        assert conditioning.pooled is not None, "time ids require a pooled text embedding"
        found = {"text_embeds": conditioning.pooled.to(dtype), "time_ids": conditioning.time_ids.float()}
    if conditioning.image_embeds:
        found["image_embeds"] = [each.to(dtype) for each in conditioning.image_embeds]
    return found or None


def guidance_embedding(unet: Any, conditioning: Conditioning, dtype: torch.dtype) -> Tensor | None:
    """The sinusoidal embedding [B, E] of the guidance scales, for a UNet that is told them; None for others.

    Of w = guidance scale - 1, times 1000 (Luo et al. 2023, section 4.3): half sines, half cosines, as diffusers'
    pipelines compute it.
    """
    width = unet.config.time_cond_proj_dim
    if width is None:
        return None
    assert conditioning.guidance_scale is not None, "this UNet needs to be told the guidance scale"
    half = width // 2
    frequencies = torch.exp(torch.arange(half) * (-math.log(10000.0) / (half - 1)))
    angles = (
        1000.0
        * (conditioning.guidance_scale.float() - 1)[:, None]
        * frequencies.to(conditioning.guidance_scale.device)
    )
    padding = angles.new_zeros(len(angles), width % 2)
    return torch.cat([angles.sin(), angles.cos(), padding], dim=1).to(dtype)


def _residuals(conditioning: Conditioning, dtype: torch.dtype) -> dict[str, Any]:
    """Residuals of ControlNets and T2I-Adapters as keyword arguments of the UNet, which empties the list."""
    found: dict[str, Any] = {}
    if conditioning.mid_residual is not None:
        found["down_block_additional_residuals"] = [each.to(dtype) for each in conditioning.down_residuals]
        found["mid_block_additional_residual"] = conditioning.mid_residual.to(dtype)
    if conditioning.adapter_residuals:
        found["down_intrablock_additional_residuals"] = [
            each.to(dtype) for each in conditioning.adapter_residuals
        ]
    return found

"""The denoiser: a diffusers `UNet2DConditionModel` behind the contract of `ldm.types.Denoiser`."""

from typing import Any

from torch import Tensor, nn

from ldm.errors import UserError
from ldm.types import Conditioning, Step


class UNetDenoiser(nn.Module):
    """`denoiser(latents [B,C,h,w], timesteps [B], prompt_embeds) -> model_pred [B,C,h,w]`.

    The latents keep their own dtype outside; the UNet computes in its own.

    Attributes:
        unet: the diffusers model, what is trained, saved and loaded.
    """

    def __init__(self, unet: Any) -> None:
        """Raises UserError for a UNet that needs more than latents, timesteps and one text encoder."""
        super().__init__()
        for key in ("addition_embed_type", "class_embed_type", "time_cond_proj_dim", "encoder_hid_dim_type"):
            if unet.config.get(key) is not None:
                raise UserError(
                    f"unet/config.json has {key} {unet.config[key]!r}", "such UNets are not supported"
                )
        self.unet = unet

    @property
    def num_channels(self) -> int:
        """C, the channels of the latents."""
        return int(self.unet.config.in_channels)

    @property
    def text_width(self) -> int:
        """D, the width of the prompt embeddings."""
        width = self.unet.config.cross_attention_dim
        return int(width if isinstance(width, int) else width[0])

    def forward(
        self, latents: Tensor, timesteps: Tensor, prompt_embeds: Conditioning, *, step: Step | None = None
    ) -> Tensor:
        dtype = self.unet.conv_in.weight.dtype
        output: Tensor = self.unet(
            latents.to(dtype),
            timesteps,
            encoder_hidden_states=prompt_embeds.prompt_embeds.to(dtype),
            encoder_attention_mask=prompt_embeds.attention_mask,
            return_dict=False,
        )[0]
        # always a copy: with CUDA graphs the next call writes over the answer, which some samplers keep
        return output.to(latents.dtype, copy=True)

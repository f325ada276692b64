"""Perturbed attention (Ahn et al. 2024): the UNet with an identity in place of its middle block's self-attention."""

from typing import Any

from torch import Tensor

from ldm.errors import UserError
from ldm.models.unet import UNetDenoiser
from ldm.types import Conditioning, Step


class IdentitySelfAttention:
    """A processor of diffusers' `Attention` in which every token attends to itself alone (Eq. 15).

    diffusers' own `PAGIdentitySelfAttnProcessor2_0` does the same to the second half of a batch and cannot be used for
    a whole one; a test compares the two.
    """

    def __call__(self, attn: Any, hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
        values = hidden_states
        if attn.group_norm is not None:
            values = attn.group_norm(values.transpose(1, 2)).transpose(1, 2)
        values = attn.to_out[1](attn.to_out[0](attn.to_v(values)))
        if attn.residual_connection:
            values = values + hidden_states
        return values / attn.rescale_output_factor  # type: ignore[no-any-return]


class PerturbedDenoiser:
    """`denoiser(latents [B,C,h,w], timesteps [B], conditioning) -> model_pred [B,C,h,w]` with perturbed attention."""

    def __init__(self, denoiser: UNetDenoiser) -> None:
        """Raises UserError if the UNet's middle block has no self-attention."""
        self._denoiser = denoiser
        names = denoiser.unet.attn_processors
        self._perturbed = [name for name in names if name.startswith("mid_block") and ".attn1." in name]
        if not self._perturbed:
            raise UserError(
                "guidance is pag, but this model has no self-attention in its middle block",
                "choose another guidance",
            )

    def __call__(
        self, latents: Tensor, timesteps: Tensor, conditioning: Conditioning, *, step: Step | None = None
    ) -> Tensor:
        unet = self._denoiser.unet
        usual = dict(unet.attn_processors)
        unet.set_attn_processor({**usual, **dict.fromkeys(self._perturbed, IdentitySelfAttention())})
        try:
            output: Tensor = self._denoiser(latents, timesteps, conditioning, step=step)
        finally:
            unet.set_attn_processor(dict(usual))  # it empties the mapping that it is given
        return output

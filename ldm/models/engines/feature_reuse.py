"""Deep features of the UNet, computed at every n-th step and reused in between: Ma et al. 2023, "DeepCache".

The deep features of a UNet change little from one step to the next. A call that reuses them computes only the
outermost layers, the first layers of the encoder and the last layers of the decoder, from the current latents.
Axis letters as in `ldm.types`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ldm.errors import UserError
from ldm.models.unet import UNetDenoiser, added_conditions, guidance_embedding, with_concat
from ldm.types import Conditioning, Denoiser, Step

NUM_FRESH_LAYERS = 2
"""Layers of the last up block that every call computes."""

NO_REUSE = "set deep_features_every to 1"

FIRST_LEVELS = ("DownBlock2D", "CrossAttnDownBlock2D")
LAST_LEVELS = ("UpBlock2D", "CrossAttnUpBlock2D")


def reuse_deep_features(denoiser: "UNetDenoiser | Engine", every: int) -> Denoiser:
    """A denoiser that computes its deep features at every n-th call, for one `ldm.diffusion.sampling.denoise`.

    Args:
        denoiser: the model's denoiser or an engine.
        every: n, at least 1; with 1 the denoiser itself is returned.

    Raises:
        UserError: the engine has no passes, or the UNet's first or last block cannot be split into layers.
    """
    if every == 1:
        return denoiser
    passes = SplitUNet(denoiser.unet) if isinstance(denoiser, UNetDenoiser) else denoiser.passes
    if passes is None:
        raise UserError("this engine was created without support for reusing deep features", NO_REUSE)
    return FeatureReuse(passes, every)


class Passes(Protocol):
    """The full and the shallow pass of a denoiser; `deep` is the features passed from the former to the latter."""

    def full(
        self, latents: Tensor, timesteps: Tensor, conditioning: Conditioning
    ) -> tuple[Tensor, Tensor]: ...

    def shallow(
        self, latents: Tensor, timesteps: Tensor, conditioning: Conditioning, deep: Tensor
    ) -> Tensor: ...


class Engine(Denoiser, Protocol):
    """A denoiser that runs outside torch, with its passes if it supports them."""

    @property
    def passes(self) -> Passes | None: ...


@dataclass(frozen=True)
class _Kept:
    """Deep features, the latents' shape and the call they were computed in, and the last call that used them."""

    deep: Tensor
    shape: torch.Size
    computed: int
    last: int


class FeatureReuse:
    """`denoiser(latents [B,C,h,w], timesteps [B], conditioning, *, step) -> model_pred [B,C,h,w]`.

    Use one instance per sampling run: the features belong to its images and prompts. They are recomputed at the first
    call of a run, after a skipped call, and when the number of rows changes (guidance ends). A call without a step
    keeps no features.
    """

    def __init__(self, passes: Passes, every: int) -> None:
        self._passes = passes
        self._every = every
        self._kept: _Kept | None = None

    def __call__(
        self, latents: Tensor, timesteps: Tensor, conditioning: Conditioning, *, step: Step | None = None
    ) -> Tensor:
        kept, self._kept = self._kept, None
        if step is not None and kept is not None and self._fits(kept, latents, step):
            self._kept = _Kept(kept.deep, kept.shape, kept.computed, step.evaluation)
            return self._passes.shallow(latents, timesteps, conditioning, kept.deep)
        output, deep = self._passes.full(latents, timesteps, conditioning)
        if step is not None:
            self._kept = _Kept(deep, latents.shape, step.evaluation, step.evaluation)
        return output

    def _fits(self, kept: _Kept, latents: Tensor, step: Step) -> bool:
        follows = step.evaluation == kept.last + 1 and latents.shape == kept.shape
        return follows and step.evaluation - kept.computed < self._every


@dataclass(frozen=True)
class _Given:
    """Inputs of every layer: the time embedding, the text [B, L, D], and its mask as a bias, or None."""

    time: Tensor
    text: Tensor
    text_bias: Tensor | None

    def attention(self) -> dict[str, Any]:
        return {"encoder_hidden_states": self.text, "encoder_attention_mask": self.text_bias}


class SplitUNet:
    """A `UNet2DConditionModel` as `Passes`, split in the last up block, `num_fresh` layers before its end.

    `full` returns the UNet's output and the features at the split. The UNet itself is not modified.
    """

    def __init__(self, unet: Any, num_fresh: int = NUM_FRESH_LAYERS) -> None:
        """Raises UserError unless the UNet's first block is in `FIRST_LEVELS` and its last in `LAST_LEVELS`."""
        assert not unet.config.class_embeddings_concat, (
            "class embeddings must be added to the time embedding, not concatenated"
        )
        for level, known in ((unet.down_blocks[0], FIRST_LEVELS), (unet.up_blocks[-1], LAST_LEVELS)):
            if type(level).__name__ not in known:
                raise UserError(
                    f"deep features cannot be reused in a UNet with a {type(level).__name__}",
                    NO_REUSE,
                )
        num_layers = len(unet.up_blocks[-1].resnets)
        assert 1 <= num_fresh <= num_layers, "the split must be in the last up block"
        self._unet = unet
        self._num_fresh = num_fresh
        self._cut = num_layers - num_fresh

    def full(self, latents: Tensor, timesteps: Tensor, conditioning: Conditioning) -> tuple[Tensor, Tensor]:
        """The prediction [B, C, h, w], and the features at the split [B, channels, h, w] in the UNet's dtype."""
        given = self._given(timesteps, conditioning)
        skips = self._enter(latents, conditioning, given)
        deep = self._go_deep(skips, given)
        return self._leave(deep, skips, given).to(latents.dtype), deep

    def shallow(self, latents: Tensor, timesteps: Tensor, conditioning: Conditioning, deep: Tensor) -> Tensor:
        """The prediction [B, C, h, w] from the features that `full` returned for latents of the same shape."""
        given = self._given(timesteps, conditioning)
        return self._leave(deep, self._enter(latents, conditioning, given), given).to(latents.dtype)

    def _given(self, timesteps: Tensor, conditioning: Conditioning) -> _Given:
        signals = (*conditioning.down_residuals, *conditioning.adapter_residuals, *conditioning.image_embeds)
        if signals:
            raise UserError("deep features cannot be reused with control signals or image prompts", NO_REUSE)
        text = conditioning.prompt_embeds.to(self._unet.conv_in.weight.dtype)
        mask = conditioning.attention_mask
        bias = None if mask is None else (1 - mask.to(text.dtype)).unsqueeze(1) * -10_000.0
        return _Given(self._embed_time(timesteps, conditioning, text), text, bias)

    def _embed_time(self, timesteps: Tensor, conditioning: Conditioning, text: Tensor) -> Tensor:
        """The embedding added in every layer: of timesteps, guidance, class labels, and SDXL's text and time ids."""
        unet = self._unet
        guidance = guidance_embedding(unet, conditioning, text.dtype)
        time: Tensor = unet.time_embedding(unet.time_proj(timesteps).to(text.dtype), guidance)
        labels = unet.get_class_embed(text, conditioning.class_labels)
        added = unet.get_aug_embed(time, text, added_conditions(conditioning, text.dtype) or {})
        for more in (labels, added):
            time = time if more is None else time + more
        if unet.time_embed_act is not None:
            time = unet.time_embed_act(time)
        return time

    def _enter(self, latents: Tensor, conditioning: Conditioning, given: _Given) -> list[Tensor]:
        """The encoder's skip connections for the recomputed layers, outermost first."""
        latents = with_concat(latents.to(self._unet.conv_in.weight.dtype), conditioning)
        centred = 2 * latents - 1 if self._unet.config.center_input_sample else latents
        skips = [self._unet.conv_in(centred)]
        for index in range(self._num_fresh - 1):
            skips.append(_layer(self._unet.down_blocks[0], index, skips[-1], given))
        return skips

    def _go_deep(self, entered: Sequence[Tensor], given: _Given) -> Tensor:
        """From the output of `_enter` through the rest of the encoder and the decoder up to the split."""
        skips = self._go_down(entered, given)
        hidden = _level(self._unet.mid_block, skips[-1], given) if self._unet.mid_block else skips[-1]
        for level in self._unet.up_blocks[:-1]:
            taken = [skips.pop() for _ in level.resnets]
            rest = {"res_hidden_states_tuple": tuple(reversed(taken)), "upsample_size": skips[-1].shape[2:]}
            hidden = _level(level, hidden, given, **rest)
        for index in range(self._cut):
            hidden = _layer(self._unet.up_blocks[-1], index, torch.cat([hidden, skips.pop()], dim=1), given)
        return hidden

    def _go_down(self, entered: Sequence[Tensor], given: _Given) -> list[Tensor]:
        """All skip connections from the encoder to the decoder, outermost first."""
        skips, first = list(entered), self._unet.down_blocks[0]
        for index in range(len(entered) - 1, len(first.resnets)):
            skips.append(_layer(first, index, skips[-1], given))
        for downsampler in first.downsamplers or ():
            skips.append(downsampler(skips[-1]))
        for level in self._unet.down_blocks[1:]:
            skips += _level(level, skips[-1], given)[1]
        return skips

    def _leave(self, hidden: Tensor, skips: Sequence[Tensor], given: _Given) -> Tensor:
        """The recomputed layers of the decoder and the output layers."""
        unet = self._unet
        for index, skip in enumerate(reversed(skips), start=self._cut):
            hidden = _layer(unet.up_blocks[-1], index, torch.cat([hidden, skip], dim=1), given)
        if unet.conv_norm_out is not None:
            hidden = unet.conv_act(unet.conv_norm_out(hidden))
        output: Tensor = unet.conv_out(hidden)
        return output


def _level(level: Any, hidden: Tensor, given: _Given, **more: Any) -> Any:
    """Run a block of the UNet, with the text if it has cross-attention."""
    attention = given.attention() if getattr(level, "has_cross_attention", False) else {}
    return level(hidden_states=hidden, temb=given.time, **attention, **more)


def _layer(level: Any, index: int, hidden: Tensor, given: _Given) -> Any:
    """Run one layer of a block: convolutions, and cross-attention if the block has it."""
    hidden = level.resnets[index](hidden, given.time)
    if getattr(level, "has_cross_attention", False):
        hidden = level.attentions[index](hidden, **given.attention(), return_dict=False)[0]
    return hidden

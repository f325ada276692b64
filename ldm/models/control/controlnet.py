"""ControlNet (Zhang et al. 2023): a network that turns control images into residuals for the UNet.

A ControlNet is a copy of the UNet's encoder whose outputs pass zero-initialised convolutions and are added to the
UNet's skip connections and middle block. `with_controlnets` maps a denoiser to a denoiser, so it works with every
task, guidance and sampler. Axis letters as in `ldm.types`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ldm.diffusion.interval import EVERYWHERE, Interval
from ldm.models.parts import ModelParts
from ldm.models.unet import UNetDenoiser, added_conditions
from ldm.types import Conditioning, Denoiser, Step


@dataclass(frozen=True)
class ControlOptions:
    """When and to which rows control applies.

    Attributes:
        interval: the part of the sampling steps, as fractions; step i of N is in it if start <= i / N and
            (i + 1) / N <= end.
        num_steps: N.
        guess_mode: control only the rows of the prompt, and the deep features more than the others.
        num_rows: of the prompt, B for each of those that are joined; they are the last of a batch with guidance.
    """

    interval: Interval = EVERYWHERE
    num_steps: int = 1
    guess_mode: bool = False
    num_rows: int = 0

    def includes(self, step: Step | None) -> bool:
        """Whether control is on; calls without a step are controlled."""
        start, end = self.interval
        return step is None or (
            start <= step.index / self.num_steps and (step.index + 1) / self.num_steps <= end
        )


ALWAYS = ControlOptions()


def with_controlnets(
    denoiser: Denoiser, nets: Sequence[tuple[Any, float]], options: ControlOptions = ALWAYS
) -> Denoiser:
    """A denoiser that turns `Conditioning.hints` into the sum of the residuals of several ControlNets.

    Outside of the interval it passes neither these nor the residuals of T2I-Adapters on.

    Args:
        nets: a diffusers `ControlNetModel` for each hint, and the scale of its residuals: 0 is the denoiser alone.
    """

    def controlled(
        latents: Tensor, timesteps: Tensor, conditioning: Conditioning, *, step: Step | None = None
    ) -> Tensor:
        told = replace(conditioning, hints=())
        if not options.includes(step):
            return denoiser(latents, timesteps, replace(told, adapter_residuals=()), step=step)
        for (net, scale), hint in zip(nets, conditioning.hints, strict=True):
            if scale:
                down, middle = residuals(net, latents, timesteps, conditioning, hint, scale, options)
                told = _with_residuals(told, down, middle)
        return denoiser(latents, timesteps, told, step=step)

    return controlled


def residuals(
    net: Any,
    latents: Tensor,
    timesteps: Tensor,
    conditioning: Conditioning,
    hint: Tensor,
    scale: float,
    options: ControlOptions = ALWAYS,
) -> tuple[list[Tensor], Tensor]:
    """The residuals of a ControlNet for the skip connections and for the middle block.

    In guess mode those of the rows before the last `options.num_rows` are zero.

    Args:
        hint: [B, 3, H, W] in [0, 1].
    """
    guesses = options.guess_mode or bool(net.config.global_pool_conditions)
    first = max(len(latents) - options.num_rows, 0) if guesses and options.num_rows else 0
    dtype = net.conv_in.weight.dtype
    text = replace(conditioning, image_embeds=())
    down, middle = net(
        latents[first:].to(dtype),
        timesteps[first:],
        encoder_hidden_states=conditioning.prompt_embeds[first:].to(dtype),
        controlnet_cond=hint[first:].to(dtype),
        added_cond_kwargs=added_conditions(text.map(lambda tensor: tensor[first:]), dtype),
        conditioning_scale=scale,
        guess_mode=guesses,
        return_dict=False,
    )
    return [_after_zeros(each, first) for each in down], _after_zeros(middle, first)


def _after_zeros(rows: Tensor, count: int) -> Tensor:
    return torch.cat([rows.new_zeros(count, *rows.shape[1:]), rows]) if count else rows


def _with_residuals(conditioning: Conditioning, down: Sequence[Tensor], middle: Tensor) -> Conditioning:
    """The conditioning with residuals added to those that it has."""
    if conditioning.mid_residual is None:
        return replace(conditioning, down_residuals=tuple(down), mid_residual=middle)
    summed = tuple(one + other for one, other in zip(conditioning.down_residuals, down, strict=True))
    return replace(conditioning, down_residuals=summed, mid_residual=conditioning.mid_residual + middle)


class ControlledUNet(UNetDenoiser):
    """A frozen UNet with a ControlNet that is trained beside it; `Conditioning.hints` holds the control images.

    Attributes:
        controlnet: a diffusers `ControlNetModel`.
    """

    def __init__(self, unet: Any, controlnet: Any, *, latent_channels: int | None = None) -> None:
        super().__init__(unet, latent_channels=latent_channels)
        self.controlnet = controlnet

    def forward(
        self, latents: Tensor, timesteps: Tensor, conditioning: Conditioning, *, step: Step | None = None
    ) -> Tensor:
        controlled = with_controlnets(super().forward, [(self.controlnet, 1.0)])
        return controlled(latents, timesteps, conditioning, step=step)


def with_fresh_controlnet(parts: ModelParts, seed: int) -> ControlledUNet:
    """The denoiser of a model with a ControlNet to train beside it.

    Args:
        seed: of the weights that are drawn at random, those that embed the hint.
    """
    unet = parts.denoiser.unet
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = fresh_controlnet(unet, parts.autoencoder.pixels_per_latent)
    return ControlledUNet(unet, net, latent_channels=parts.denoiser.latent_channels)


EMBEDDING_CHANNELS = (16, 32, 96, 256)
"""Of the layers that embed a hint; each but the first halves it, eight times in all as Stable Diffusion's VAE does."""


def fresh_controlnet(unet: Any, pixels_per_latent: int) -> Any:
    """A ControlNet to train: the UNet's encoder copied, the convolutions at its outputs zero.

    Args:
        pixels_per_latent: along each side, a power of two; a hint is halved as often as an image.
    """
    from diffusers.models.controlnets.controlnet import ControlNetModel

    return ControlNetModel.from_unet(
        unet, conditioning_embedding_out_channels=hint_channels(pixels_per_latent)
    )


def hint_channels(pixels_per_latent: int) -> tuple[int, ...]:
    """Of the layers that embed a hint, for an autoencoder."""
    halvings = pixels_per_latent.bit_length() - 1
    return (*EMBEDDING_CHANNELS, *EMBEDDING_CHANNELS[-1:] * halvings)[: halvings + 1]

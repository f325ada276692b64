"""The nouns that cross module borders.

Axis letters, used in every docstring:
B batch, C latent channels, H W pixels, h w latent size, L tokens, D text width, P pooled text width.
"""

from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

MAX_PROMPT_CHUNKS = 3
"""Chunks that the longest prompt is cut into, each as long as the text encoder's context."""


@dataclass(frozen=True)
class Conditioning:
    """What the text encoder says of B prompts.

    Attributes:
        prompt_embeds: [B, L, D], what the denoiser attends to; L is one context of the text encoder or several.
        pooled: [B, P], one vector a prompt, or None.
        attention_mask: [B, L], 1 for tokens to attend to, or None for all.
    """

    prompt_embeds: Tensor
    pooled: Tensor | None = None
    attention_mask: Tensor | None = None

    def __len__(self) -> int:
        return self.prompt_embeds.shape[0]

    def map(self, fn: "TensorFunction") -> "Conditioning":
        """The same embeddings with `fn` applied to each tensor present."""
        pooled, mask = self.pooled, self.attention_mask
        return replace(
            self,
            prompt_embeds=fn(self.prompt_embeds),
            pooled=None if pooled is None else fn(pooled),
            attention_mask=None if mask is None else fn(mask),
        )

    def select(self, rows: list[int]) -> "Conditioning":
        """The rows named, in that order: [B, ...] -> [len(rows), ...]."""
        return self.map(lambda tensor: tensor[rows])


class TensorFunction(Protocol):
    """Any function from a tensor to a tensor."""

    def __call__(self, tensor: Tensor, /) -> Tensor: ...


@dataclass(frozen=True)
class Step:
    """Where the sampler stands: plain numbers, so that nothing asks the device.

    Attributes:
        index: sampling step, from 0.
        evaluation: denoiser call, from 0 (a second-order step makes two).
        timestep: the training timestep that the denoiser is told.
        sigma: noise level at that timestep, sigma/alpha in the path's terms.
        fraction: of the sampling steps, how many are done before this one; 0 to below 1.
    """

    index: int
    evaluation: int
    timestep: float
    sigma: float
    fraction: float = 0.0


class Denoiser(Protocol):
    """`denoiser(latents [B,C,h,w], timesteps [B], prompt_embeds) -> model_pred [B,C,h,w]`."""

    def __call__(
        self,
        latents: Tensor,
        timesteps: Tensor,
        prompt_embeds: Conditioning,
        *,
        step: Step | None = None,
    ) -> Tensor: ...


def concat_conditioning(first: Conditioning, second: Conditioning) -> Conditioning:
    """Two sets of prompts as one: B1 and B2 rows become B1 + B2."""

    def join(a: Tensor | None, b: Tensor | None) -> Tensor | None:
        return None if a is None or b is None else torch.cat([a, b])

    return Conditioning(
        torch.cat([first.prompt_embeds, second.prompt_embeds]),
        join(first.pooled, second.pooled),
        join(first.attention_mask, second.attention_mask),
    )

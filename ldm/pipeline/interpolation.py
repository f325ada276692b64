"""Images between two seeds or two prompts: their noise and their embeddings are interpolated on the sphere."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ldm.models.generation_settings import GenerationSettings
from ldm.types import Conditioning

OWN = ("to_seed", "to_prompt", "frame", "num_frames")
"""The settings of an interpolation. The images at its ends are plain images and have none of them."""


@dataclass(frozen=True)
class Frame:
    """One image of an interpolation; None is that of the prompt that asks for it."""

    settings: GenerationSettings
    prompt: str | None = None
    seed: int | None = None


def frames(settings: GenerationSettings) -> list[Frame]:
    """The images that the settings ask for from one seed and prompt: one, unless they name where to go."""
    plain = settings.without(*OWN)
    if settings.to_seed < 0 and not settings.to_prompt:
        return [Frame(plain)]
    last = max(settings.num_frames - 1, 1)
    every = [place / last for place in range(settings.num_frames)]
    positions = [settings.frame] if settings.frame else every
    return [_frame(settings, plain, position) for position in positions]


def _frame(settings: GenerationSettings, plain: GenerationSettings, position: float) -> Frame:
    if position == 0:
        return Frame(plain)
    if position == 1:
        seed = settings.to_seed if settings.to_seed >= 0 else None
        return Frame(plain, settings.to_prompt or None, seed)
    between = {**settings.without("num_frames").given(), "frame": position}
    return Frame(type(settings)(**between))


def between(start: Conditioning, end: Conditioning, position: float) -> Conditioning:
    """The embeddings on the way from one prompt to another, token by token: prompt_embeds [B, L, D], pooled [B, P]."""
    if start.pooled is None or end.pooled is None:
        pooled = start.pooled
    else:
        pooled = slerp(start.pooled, end.pooled, position, axes=(1,))
    embeds = slerp(start.prompt_embeds, end.prompt_embeds, position, axes=(2,))
    return replace(start, prompt_embeds=embeds, pooled=pooled)


def slerp(start: Tensor, end: Tensor, position: float, axes: Sequence[int]) -> Tensor:
    """Spherical linear interpolation (Shoemake 1985) of the vectors along `axes`; 0 is the start, 1 the end.

    Vectors that point the same or the opposite way are interpolated in a straight line.
    """
    lengths = [each.square().sum(dim=list(axes), keepdim=True).sqrt() for each in (start, end)]
    cosine = (start * end).sum(dim=list(axes), keepdim=True) / (lengths[0] * lengths[1]).clamp(min=1e-12)
    angle = torch.acos(cosine.clamp(-1, 1))
    sine = torch.sin(angle)
    is_straight = sine < 1e-4
    sine = torch.where(is_straight, torch.ones_like(sine), sine)
    first, second = (
        torch.where(is_straight, torch.full_like(sine, share), torch.sin(share * angle) / sine)
        for share in (1 - position, position)
    )
    return first * start + second * end

"""A denoiser that works on a large canvas in overlapping windows, as MultiDiffusion does (Bar-Tal et al. 2023).

At each step the predictions of all windows are blended into one for the whole canvas. So the canvas has one noise and
one sampler, and neighbouring windows cannot drift apart.

Axis letters: B batch, C latent channels, h w latent size.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ldm.types import Conditioning, Denoiser, Step


@dataclass(frozen=True)
class Window:
    """A part of a canvas, in latents or in pixels."""

    top: int
    left: int
    height: int
    width: int

    @property
    def rows(self) -> slice:
        return slice(self.top, self.top + self.height)

    @property
    def columns(self) -> slice:
        return slice(self.left, self.left + self.width)

    def cut(self, values: Tensor) -> Tensor:
        """This part of [..., h, w]."""
        return values[..., self.rows, self.columns]

    def divided(self, multiple: int) -> "Window":
        """The same part of a grid that is `multiple` times coarser, such as the latents of a part in pixels."""
        return Window(*(each // multiple for each in (self.top, self.left, self.height, self.width)))


def list_windows(height: int, width: int, side: int, overlap: int) -> list[Window]:
    """The windows that cover a canvas, row by row; neighbours overlap by `overlap` or more.

    Args:
        side: of a window; one that is longer than the canvas is cut to it.

    Raises:
        ValueError: windows that overlap so far never get anywhere.
    """
    if not 0 <= overlap < side:
        raise ValueError(f"windows of {side} cannot overlap by {overlap}")
    tall, wide = min(side, height), min(side, width)
    return [
        Window(top, left, tall, wide)
        for top in _starts(height, tall, overlap)
        for left in _starts(width, wide, overlap)
    ]


def _starts(length: int, side: int, overlap: int) -> list[int]:
    """Where windows begin along an axis, evenly spread."""
    if length <= side:
        return [0]
    count = -(-(length - overlap) // (side - overlap))
    return [round(number * (length - side) / (count - 1)) for number in range(count)]


def in_windows(denoisers: Sequence[Denoiser], windows: Sequence[Window]) -> Denoiser:
    """A denoiser for the whole canvas.

    Args:
        denoisers: one for each window, as a denoiser may keep features between steps.
        windows: from `list_windows`.
    """
    shares = _shares(windows)

    def whole(
        latents: Tensor, timesteps: Tensor, conditioning: Conditioning, *, step: Step | None = None
    ) -> Tensor:
        blended = torch.zeros_like(latents)
        for denoiser, window, share in zip(denoisers, windows, shares, strict=True):
            part = denoiser(window.cut(latents), timesteps, _cut(conditioning, window), step=step)
            window.cut(blended).add_(part * share.to(part))
        return blended

    return whole


def _cut(conditioning: Conditioning, window: Window) -> Conditioning:
    """What concerns a window; the prompt is the same for all."""
    assert not conditioning.down_residuals, "the residuals of a ControlNet cannot be cut"
    concat = conditioning.concat
    return conditioning if concat is None else replace(conditioning, concat=window.cut(concat))


def _shares(windows: Sequence[Window]) -> list[Tensor]:
    """What each window contributes to its pixels, [height, width]; over any pixel the shares add up to 1."""
    height = max(each.top + each.height for each in windows)
    width = max(each.left + each.width for each in windows)
    total = torch.zeros(height, width, dtype=torch.float64)
    weights = [torch.outer(_tent(each.height), _tent(each.width)) for each in windows]
    for window, weight in zip(windows, weights, strict=True):
        window.cut(total).add_(weight)
    return [weight / window.cut(total) for window, weight in zip(windows, weights, strict=True)]


def _tent(length: int) -> Tensor:
    """1, 2, ... up to the middle and down again, so that a window fades out towards its border."""
    rising = torch.arange(1, length + 1, dtype=torch.float64)
    return torch.minimum(rising, rising.flip(0))

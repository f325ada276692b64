"""T2I-Adapter (Mou et al. 2023): a small network that turns a control image into residuals for each level of the UNet.

They depend neither on the latents nor on the time, so they are computed once for a generation. Axis letters as in
`ldm.types`.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

GREY = (0.299, 0.587, 0.114)
"""The weights of red, green and blue in a grey value, ITU-R BT.601 as in Pillow."""


@torch.no_grad()
def adapter_residuals(adapter: Any, hint: Tensor, scale: float) -> list[Tensor]:
    """The scaled residuals of a diffusers `T2IAdapter`, one [B, channels, h, w] for each level.

    Args:
        hint: [B, 3, H, W] in [0, 1]; an adapter for grey images takes the grey values. An adapter of SDXL halves the
            latents' grid; an odd one is completed by repeating the last row and column, as the UNet rounds up.
    """
    if adapter.config.in_channels == 1:
        weights = torch.tensor(GREY, device=hint.device).view(1, 3, 1, 1)
        hint = (hint * weights).sum(dim=1, keepdim=True)
    factor = adapter.config.downscale_factor
    tall, wide = (-side % factor for side in hint.shape[2:])
    hint = functional.pad(hint, (0, wide, 0, tall), mode="replicate") if tall or wide else hint
    dtype = next(adapter.parameters()).dtype
    return [scale * each for each in adapter(hint.to(dtype))]


def sum_of(levels: Sequence[Tensor]) -> Tensor:
    """The sum of the residuals of several adapters for one level."""
    return torch.stack(list(levels)).sum(dim=0)

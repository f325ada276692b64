"""The nouns that cross module borders.

Axis letters, used in every docstring:
B batch, C latent channels, H W pixels, h w latent size, L tokens, D text width, P pooled text width, K extra channels.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Conditioning:
    """Everything that a denoiser is told besides the latents and the time, for B rows.

    Attributes:
        prompt_embeds: [B, L, D], what cross-attention attends to; L is one context of the text encoder or several.
        pooled: [B, P], one vector a prompt, or None.
        attention_mask: [B, L], 1 for tokens to attend to, or None for all.
        time_ids: [B, 6], original height and width, crop top and left, target height and width (SDXL), in float32.
        class_labels: [B], integers, or noise levels of an upscaler.
        concat: [B, K, h, w], appended to the latents' channels after the sampler has scaled them.
        down_residuals: of a ControlNet or T2I-Adapter, one [B, channels, h, w] for each skip connection of the UNet.
        mid_residual: of a ControlNet, for the middle block [B, channels, h, w].
        image_embeds: image prompts (IP-Adapter), one [B, images, tokens or width, ...] for each adapter.
    """

    prompt_embeds: Tensor
    pooled: Tensor | None = None
    attention_mask: Tensor | None = None
    time_ids: Tensor | None = None
    class_labels: Tensor | None = None
    concat: Tensor | None = None
    down_residuals: tuple[Tensor, ...] = ()
    mid_residual: Tensor | None = None
    image_embeds: tuple[Tensor, ...] = ()

    def __len__(self) -> int:
        return self.prompt_embeds.shape[0]

    def map(self, fn: Callable[[Tensor], Tensor]) -> "Conditioning":
        """The same conditioning with `fn` applied to each tensor present."""
        return replace(self, **{name: _map(fn, value) for name, value in _present(self).items()})

    def select(self, rows: Sequence[int]) -> "Conditioning":
        """The rows named, in that order: [B, ...] -> [len(rows), ...]."""
        return self.map(lambda tensor: tensor[list(rows)])

    def expand(self, num_rows: int) -> "Conditioning":
        """One row repeated `num_rows` times; conditioning that has that many rows already is returned as it is."""
        return self.select([0] * num_rows) if len(self) == 1 and num_rows > 1 else self

    def to(self, device: torch.device) -> "Conditioning":
        """The same conditioning on a device."""
        return self.map(lambda tensor: tensor.to(device))

    @staticmethod
    def cat(parts: "Sequence[Conditioning]") -> "Conditioning":
        """Several conditionings as one: rows B1, B2, ... become B1 + B2 + ...

        Raises:
            ValueError: a field is set in some of them and not in others, so that rows would lose it.
        """
        present = [_present(part) for part in parts]
        for name in {name for each in present for name in each}:
            if missing := [index for index, each in enumerate(present) if name not in each]:
                raise ValueError(
                    f"{name} is missing in conditioning {missing[0]} of {len(parts)}, others have it"
                )
        return Conditioning(**{name: _cat([each[name] for each in present]) for name in present[0]})


def _present(conditioning: Conditioning) -> dict[str, Any]:
    values = {field.name: getattr(conditioning, field.name) for field in fields(conditioning)}
    return {name: value for name, value in values.items() if isinstance(value, Tensor) or value}


def _map(fn: Callable[[Tensor], Tensor], value: Any) -> Any:
    return tuple(map(fn, value)) if isinstance(value, tuple) else fn(value)


def _cat(values: Sequence[Any]) -> Any:
    if isinstance(values[0], tuple):
        return tuple(torch.cat(each) for each in zip(*values, strict=True))
    return torch.cat(list(values))


@dataclass(frozen=True)
class Step:
    """Where the sampler stands: plain numbers, so that nothing asks the device.

    Attributes:
        index: sampling step, from 0.
        evaluation: denoiser call, from 0 (a second-order step makes two).
        timestep: what the denoiser is told of the time, such as the training timestep.
        sigma: noise level at that timestep, sigma/alpha in the path's terms.
        fraction: share of the sampling steps that are done before this one; 0 to below 1.
    """

    index: int
    evaluation: int
    timestep: float
    sigma: float
    fraction: float = 0.0


class Denoiser(Protocol):
    """`denoiser(latents [B,C,h,w], timesteps [B], conditioning) -> model_pred [B,C,h,w]`; timesteps may be floats."""

    def __call__(
        self,
        latents: Tensor,
        timesteps: Tensor,
        conditioning: Conditioning,
        *,
        step: Step | None = None,
    ) -> Tensor: ...

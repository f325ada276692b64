"""Types shared between modules.

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
    """All inputs of a denoiser besides the latents and the timesteps, for B rows.

    Attributes:
        prompt_embeds: [B, L, D], the input of cross-attention; L spans one or more contexts of the text encoder.
        pooled: [B, P], one vector per prompt, or None.
        attention_mask: [B, L], 1 for tokens to attend to, or None to attend to all.
        time_ids: [B, 6], original height and width, crop top and left, target height and width (SDXL), in float32.
        class_labels: [B], integers, or the noise levels of an upscaler.
        concat: [B, K, h, w], concatenated to the latents' channels after the sampler has scaled the latents.
        hints: control images in [0, 1], one [B, 3, H, W] per ControlNet, which turns them into residuals.
        down_residuals: from ControlNets, one [B, channels, h, w] for each skip connection of the UNet.
        mid_residual: from ControlNets, for the middle block [B, channels, h, w].
        adapter_residuals: from T2I-Adapters, one [B, channels, h, w] for each level of the UNet.
        image_embeds: image prompts (IP-Adapter), one [B, images, tokens or width, ...] per adapter.
        guidance_scale: [B], for distilled UNets that are told the scale instead of being guided, in float32.
    """

    prompt_embeds: Tensor
    pooled: Tensor | None = None
    attention_mask: Tensor | None = None
    time_ids: Tensor | None = None
    class_labels: Tensor | None = None
    concat: Tensor | None = None
    hints: tuple[Tensor, ...] = ()
    down_residuals: tuple[Tensor, ...] = ()
    mid_residual: Tensor | None = None
    adapter_residuals: tuple[Tensor, ...] = ()
    image_embeds: tuple[Tensor, ...] = ()
    guidance_scale: Tensor | None = None

    def __len__(self) -> int:
        return self.prompt_embeds.shape[0]

    def map(self, fn: Callable[[Tensor], Tensor]) -> "Conditioning":
        """A copy with `fn` applied to each tensor that is set."""
        return replace(self, **{name: _map(fn, value) for name, value in _present(self).items()})

    def select(self, rows: Sequence[int]) -> "Conditioning":
        """The given rows, in that order: [B, ...] -> [len(rows), ...]."""
        return self.map(lambda tensor: tensor[list(rows)])

    def expand(self, num_rows: int) -> "Conditioning":
        """Repeat a single row `num_rows` times; conditioning with more than one row is returned unchanged."""
        return self.select([0] * num_rows) if len(self) == 1 and num_rows > 1 else self

    def to(self, device: torch.device) -> "Conditioning":
        """A copy on the given device."""
        return self.map(lambda tensor: tensor.to(device))

    @staticmethod
    def cat(parts: "Sequence[Conditioning]") -> "Conditioning":
        """Concatenate conditionings along the batch axis: B1, B2, ... rows become B1 + B2 + ...

        Raises:
            ValueError: a field is set in some of them but not in all.
        """
        present = [_present(part) for part in parts]
        for name in {name for each in present for name in each}:
            if missing := [index for index, each in enumerate(present) if name not in each]:
                raise ValueError(
                    f"{name} is missing in conditioning {missing[0]} of {len(parts)} but set in others"
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
    """The sampler's current position, in plain Python numbers so that reading it never synchronizes with the device.

    Attributes:
        index: sampling step, from 0.
        evaluation: denoiser call, from 0 (a second-order step makes two).
        timestep: the denoiser's time input, such as the training timestep.
        sigma: noise level at that timestep, sigma/alpha in the path's terms.
        fraction: fraction of the sampling steps completed before this one, in [0, 1).
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

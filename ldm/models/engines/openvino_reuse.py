"""Reuse of deep features on OpenVINO: the two passes of `feature_reuse`, converted as two networks.

Axis letters as in `ldm.types`.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ldm.models.engines.feature_reuse import SplitUNet
from ldm.models.engines.openvino_network import ANY, SizedNetwork, TracedNetwork
from ldm.types import Conditioning


def text_inputs(conditioning: Conditioning) -> tuple[Tensor, ...]:
    """The inputs of a converted UNet besides latents and timesteps, in its order: text, and in SDXL what is beside it.

    The conditioning must contain nothing else: no mask, no image, no control.
    """
    given = [name for name, value in vars(conditioning).items() if isinstance(value, Tensor) or value]
    allowed = {"prompt_embeds", "pooled", "time_ids"}
    assert {*given} <= allowed, f"the converted UNet has no input for {given}"
    if conditioning.time_ids is None:
        return (conditioning.prompt_embeds,)
    assert conditioning.pooled is not None  # time ids require it
    return conditioning.prompt_embeds, conditioning.pooled, conditioning.time_ids


class _TracedPass(nn.Module):
    """A pass with positional inputs; the UNet is a submodule, so that tracing finds its weights."""

    def __init__(self, unet: Any) -> None:
        super().__init__()
        self.unet = unet
        self._split = SplitUNet(unet)


class TracedFull(_TracedPass):
    """`SplitUNet.full` -> `out_sample` [B, C, h, w] and `deep` [B, channels, h, w]."""

    def forward(
        self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor
    ) -> tuple[Tensor, Tensor]:
        return self._split.full(sample, timestep, Conditioning(encoder_hidden_states))


class TracedShallow(_TracedPass):
    """`SplitUNet.shallow` -> `out_sample` [B, C, h, w]."""

    def forward(
        self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor, deep: Tensor
    ) -> Tensor:
        return self._split.shallow(sample, timestep, Conditioning(encoder_hidden_states), deep)


class TracedXLFull(_TracedPass):
    """`TracedFull` of a UNet that is told sizes."""

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        text_embeds: Tensor,
        time_ids: Tensor,
    ) -> tuple[Tensor, Tensor]:
        told = Conditioning(encoder_hidden_states, pooled=text_embeds, time_ids=time_ids)
        return self._split.full(sample, timestep, told)


class TracedXLShallow(_TracedPass):
    """`TracedShallow` of a UNet that is told sizes."""

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        text_embeds: Tensor,
        time_ids: Tensor,
        deep: Tensor,
    ) -> Tensor:
        told = Conditioning(encoder_hidden_states, pooled=text_embeds, time_ids=time_ids)
        return self._split.shallow(sample, timestep, told, deep)


@torch.no_grad()
def traced_passes(whole: TracedNetwork, unet: Any) -> dict[str, TracedNetwork]:
    """A UNet's passes by name, `full` and `shallow`.

    Args:
        whole: the UNet as one network; the passes have the same inputs.

    Raises:
        UserError: the UNet cannot be split.
    """
    is_xl = "time_ids" in whole.shapes
    full, shallow = (
        (TracedXLFull(unet), TracedXLShallow(unet)) if is_xl else (TracedFull(unet), TracedShallow(unet))
    )
    example, trial = ({**inputs, "deep": full(**inputs)[1]} for inputs in (whole.example, whole.trial))
    shapes = {**whole.shapes, "deep": (ANY, example["deep"].shape[1], ANY, ANY)}
    return {
        "full": replace(whole, network=full, outputs=["out_sample", "deep"]),
        "shallow": TracedNetwork(shallow, shapes, ["out_sample"], example, trial),
    }


class OpenVINOPasses:
    """`ldm.models.engines.feature_reuse.Passes` that run the converted networks."""

    def __init__(self, full: SizedNetwork, shallow: SizedNetwork) -> None:
        self._full = full
        self._shallow = shallow

    def full(self, latents: Tensor, timesteps: Tensor, conditioning: Conditioning) -> tuple[Tensor, Tensor]:
        """The prediction [B, C, h, w], and the features at the split [B, channels, h, w]."""
        answers = self._full(latents, timesteps, *text_inputs(conditioning))
        return answers["out_sample"].to(latents), answers["deep"]

    def shallow(self, latents: Tensor, timesteps: Tensor, conditioning: Conditioning, deep: Tensor) -> Tensor:
        """The prediction [B, C, h, w] from the features that `full` returned."""
        given = (*text_inputs(conditioning), deep)
        return self._shallow(latents, timesteps, *given)["out_sample"].to(latents)

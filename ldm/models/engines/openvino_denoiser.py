"""Run a denoiser with OpenVINO, which is faster than torch on a CPU.

Axis letters as in `ldm.types`. The UNet is converted once, for any batch size, image size and number of tokens, and
stored on disk. It is compiled for the exact sizes of a call when they first occur.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ldm.errors import UserError
from ldm.io.files import write_json
from ldm.io.folders import new_folder
from ldm.models.engines.feature_reuse import Passes
from ldm.models.engines.openvino_network import (
    ANY,
    MODEL_FILE,
    SizedNetwork,
    TracedNetwork,
    read_network,
    write_network,
)
from ldm.models.engines.openvino_reuse import OpenVINOPasses, text_inputs, traced_passes
from ldm.models.unet import UNetDenoiser
from ldm.types import Conditioning, Step

TOLERANCE = 1e-3
"""The largest allowed difference from torch's output, in standard deviations of that output."""


class TracedUNet(nn.Module):
    """A diffusers UNet that takes positional inputs and returns a tensor.

    The inputs have diffusers' names and are latents [B, C, h, w], timesteps [B] and prompt_embeds [B, L, D].
    """

    def __init__(self, unet: Any) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor) -> Tensor:
        output: Tensor = self.unet(
            sample, timestep, encoder_hidden_states=encoder_hidden_states, return_dict=False
        )[0]
        return output


class TracedXLUNet(nn.Module):
    """A `TracedUNet` that is told sizes: with a pooled text embedding [B, P] and time ids [B, n]."""

    def __init__(self, unet: Any) -> None:
        super().__init__()
        self.unet = unet

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        text_embeds: Tensor,
        time_ids: Tensor,
    ) -> Tensor:
        added = {"text_embeds": text_embeds, "time_ids": time_ids}
        output: Tensor = self.unet(
            sample,
            timestep,
            encoder_hidden_states=encoder_hidden_states,
            added_cond_kwargs=added,
            return_dict=False,
        )[0]
        return output


def traced_unet(denoiser: UNetDenoiser) -> TracedNetwork:
    """A denoiser's UNet: inputs of any B, h, w and L -> `out_sample` [B, C, h, w]; `sample` has C + K channels.

    It is traced with an odd height and width, which the UNet cannot halve evenly. Only then does the UNet upsample to
    the size of each skip connection, which is correct for all sizes. Otherwise the trace would double the size, which
    is only correct for even sizes.
    """
    channels, width = denoiser.input_channels, denoiser.text_width
    smallest = 2 ** (len(denoiser.unet.config.block_out_channels) - 1)
    shapes: dict[str, tuple[int, ...]] = {
        "sample": (ANY, channels, ANY, ANY),
        "timestep": (ANY,),
        "encoder_hidden_states": (ANY, ANY, width),
    }
    network = TracedXLUNet(denoiser.unet) if denoiser.needs_time_ids else TracedUNet(denoiser.unet)
    if denoiser.needs_time_ids:  # their number is not known here; with any, the sum of the widths is the same
        shapes |= {"text_embeds": (ANY, ANY), "time_ids": (ANY, ANY)}

    def inputs(num_rows: int, height: int, num_tokens: int, num_ids: int) -> dict[str, Tensor]:
        generator = torch.Generator("cpu").manual_seed(0)
        return {
            "sample": torch.randn(num_rows, channels, height, 2 * smallest + 1, generator=generator),
            "timestep": torch.linspace(900.0, 20.0, num_rows),
            "encoder_hidden_states": torch.randn(num_rows, num_tokens, width, generator=generator),
            **(added_inputs(denoiser, num_rows, num_ids) if denoiser.needs_time_ids else {}),
        }

    example, trial = inputs(2, smallest + 1, 8, 2), inputs(3, 2 * smallest, 16, 1)
    return TracedNetwork(network, shapes, ["out_sample"], example, trial)


def added_inputs(denoiser: UNetDenoiser, num_rows: int, num_ids: int) -> dict[str, Tensor]:
    """A pooled text embedding [B, P] and so many sizes [B, n], of which P follows."""
    generator = torch.Generator("cpu").manual_seed(1)
    return {
        "text_embeds": torch.randn(num_rows, denoiser.pooled_width(num_ids), generator=generator),
        "time_ids": torch.randint(1024, (num_rows, num_ids), generator=generator).float(),
    }


class OpenVINODenoiser:
    """`denoiser(latents [B,C,h,w], timesteps [B], conditioning) -> model_pred [B,C,h,w]`, on the CPU in float32.

    Attributes:
        name: the engine's name in an image's settings.
        passes: its two passes, if it was created with support for reusing deep features.
    """

    name = "openvino"

    def __init__(self, network: SizedNetwork, passes: Passes | None = None) -> None:
        """Takes the network from `traced_unet`; it may have more outputs than `out_sample`."""
        self._network = network
        self.passes = passes

    def __call__(
        self, latents: Tensor, timesteps: Tensor, conditioning: Conditioning, *, step: Step | None = None
    ) -> Tensor:
        given = text_inputs(conditioning)
        return self._network(latents, timesteps, *given)["out_sample"].to(latents)


def openvino_denoiser(denoiser: UNetDenoiser, folder: Path, *, in_passes: bool = False) -> OpenVINODenoiser:
    """A denoiser on OpenVINO, with the denoiser's current weights.

    Args:
        denoiser: in float32 and in evaluation mode.
        folder: folder of the converted network, unique to these weights and this value of `in_passes`. If it does not
            exist, the network is converted, which takes a few seconds, and its output is compared with torch's.
        in_passes: whether to support reusing deep features.

    Raises:
        UserError: OpenVINO is not installed, the denoiser is not in float32 or cannot be split into passes, the disk
            is full or not writable, or OpenVINO's output differs from torch's on this machine.
    """
    if not runs_on_openvino(denoiser):
        raise UserError("the engine openvino only supports text-to-image models", "use the engine torch")
    dtype = denoiser.unet.dtype
    if dtype != torch.float32:
        raise UserError(f"the engine openvino computes in float32, not in {dtype}", "leave dtype out")
    if not is_converted(folder):
        whole = traced_unet(denoiser)
        _convert_into(folder, traced_passes(whole, denoiser.unet) if in_passes else {"": whole})
    if not in_passes:
        return OpenVINODenoiser(SizedNetwork(folder))
    full, shallow = (SizedNetwork(folder / name) for name in ("full", "shallow"))
    return OpenVINODenoiser(full, OpenVINOPasses(full, shallow))


def runs_on_openvino(denoiser: UNetDenoiser) -> bool:
    """Whether the converted network has all inputs of a denoiser."""
    return not (denoiser.needs_more_than_sizes or denoiser.embeds_guidance)


def is_converted(folder: Path) -> bool:
    """Whether the folder contains a converted network for `openvino_denoiser`."""
    return any((folder / name / MODEL_FILE).is_file() for name in ("", "full"))


def _convert_into(folder: Path, networks: Mapping[str, TracedNetwork]) -> None:
    """Convert networks and write each to a subfolder with its name, in a new folder."""
    largest = 0.0
    with new_folder(folder, manifest=False) as temporary:
        for name, traced in networks.items():
            write_network(traced.convert(), temporary / name)
            largest = max(largest, traced.difference(read_network(temporary / name)))
        if largest > TOLERANCE:
            raise UserError(
                f"OpenVINO's output differs from torch's by {largest:.2g} standard deviations on this machine",
                "use the engine torch",
            )
        write_json(temporary / "comparison.json", {"largest_difference_in_std": largest})

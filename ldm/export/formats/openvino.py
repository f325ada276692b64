"""The format "openvino": networks in the folders that optimum-intel's `OVStableDiffusionPipeline` reads."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ldm.errors import UserError
from ldm.export.export_options import ExportOptions
from ldm.export.export_source import ExportSource
from ldm.export.formats.diffusers_folder import expect_rounded
from ldm.export.formats.exporter import ExportedModel, ReadBack, Usage, literal
from ldm.export.verify.compare import verify
from ldm.models.clip import ClipTextEncoder
from ldm.models.engines.openvino_denoiser import traced_unet
from ldm.models.engines.openvino_network import ANY, TracedNetwork, write_network
from ldm.models.generation_settings import TEXT_TO_IMAGE
from ldm.models.loading.model import ModelParts, save_small_files
from ldm.models.vae import KLAutoencoder

PIPELINES = {
    f"{name}{task}Pipeline": f"OV{name}{task}Pipeline"
    for name in ("StableDiffusion", "StableDiffusionXL")
    for task in ("", "Inpaint")
}
"""optimum-intel's pipelines by that of diffusers; it has none for editing."""


def export_openvino(source: ExportSource, folder: Path, options: ExportOptions, name: str) -> ReadBack:
    """An `Exporter`.

    Raises:
        UserError: also, optimum-intel has no pipeline for the model's task.
    """
    family, task = source.parts.family, source.parts.task
    if family.pipeline_for(task) not in PIPELINES:
        named = family.title if task == TEXT_TO_IMAGE else f"a model for {task}"
        raise UserError(f"no program runs {named} with OpenVINO", "choose --format diffusers")
    if source.parts.denoiser.embeds_guidance:
        raise UserError(
            "the unet is told the guidance scale, an input that the networks for OpenVINO do not have",
            "choose --format diffusers",
        )
    write_openvino(source.weights(), folder)
    return lambda: (verify(expect_rounded(source, torch.float32), "openvino", folder=folder),)


def openvino_usage(exported: ExportedModel) -> Usage:
    """A `UsageOf`."""
    parts = exported.source.parts
    name = PIPELINES[parts.family.pipeline_for(parts.task)]
    return Usage(
        python=(f"pipe = {name}.from_pretrained({literal(exported.place)})",),
        imports=(f"from optimum.intel import {name}",),
        pipeline_class=None,
        library="OpenVINO",
        package="optimum-intel",
    )


class TracedEncoder(nn.Module):
    """pixel_values [B, 3, H, W] in [-1, 1] -> the posterior's moments [B, 2C, h, w], unscaled."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, sample: Tensor) -> Tensor:
        moments: Tensor = self.vae.encode(sample, return_dict=False)[0].parameters
        return moments


class TracedDecoder(nn.Module):
    """Unscaled latents [B, C, h, w] -> pixel_values [B, 3, H, W] in about [-1, 1]."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, latent_sample: Tensor) -> Tensor:
        pixel_values: Tensor = self.vae.decode(latent_sample, return_dict=False)[0]
        return pixel_values


class TracedText(nn.Module):
    """Token ids [B, L] -> prompt_embeds [B, L, D] and pooled [B, D].

    Where a hidden layer is used, pooled comes first if it is projected, and the outputs of all layers follow.
    """

    def __init__(self, model: Any, *, hidden_states: bool = False, projected: bool = False) -> None:
        super().__init__()
        self.model = model
        self.hidden_states = hidden_states
        self.projected = projected

    def forward(self, input_ids: Tensor) -> tuple[Tensor, ...]:
        output = self.model(input_ids=input_ids, output_hidden_states=self.hidden_states)
        both = (
            (output.text_embeds, output.last_hidden_state)
            if self.projected
            else (output.last_hidden_state, output.pooler_output)
        )
        return (*both, *output.hidden_states) if self.hidden_states else both


def traced_networks(parts: ModelParts) -> dict[str, TracedNetwork]:
    """The networks of a model by folder name; inputs and outputs are named as optimum-intel names them."""
    return {
        "unet": traced_unet(parts.denoiser),
        "vae_encoder": _traced_encoder(parts.autoencoder),
        "vae_decoder": _traced_decoder(parts.autoencoder),
        **{f"text_encoder{each.suffix}": _traced_text(each) for each in parts.text_encoder.encoders},
    }


def _traced_encoder(autoencoder: KLAutoencoder) -> TracedNetwork:
    """`sample` [B, 3, H, W] -> `latent_parameters` [B, 2C, h, w], the moments."""
    shapes = {"sample": (ANY, 3, ANY, ANY)}
    side = 4 * autoencoder.pixels_per_latent
    example, trial = ({"sample": _random(rows, 3, side, rows * side)} for rows in (2, 3))
    return TracedNetwork(TracedEncoder(autoencoder.vae), shapes, ["latent_parameters"], example, trial)


def _traced_decoder(autoencoder: KLAutoencoder) -> TracedNetwork:
    """`latent_sample` [B, C, h, w], unscaled -> `sample` [B, 3, H, W]."""
    channels = autoencoder.num_channels
    shapes = {"latent_sample": (ANY, channels, ANY, ANY)}
    example, trial = ({"latent_sample": _random(rows, channels, 4, 3 * rows)} for rows in (2, 3))
    return TracedNetwork(TracedDecoder(autoencoder.vae), shapes, ["sample"], example, trial)


def _traced_text(text_encoder: ClipTextEncoder) -> TracedNetwork:
    """`input_ids` [B, L] of one chunk -> `last_hidden_state` [B, L, D] and `pooler_output` [B, D].

    Of a projected encoder: `text_embeds` [B, P] and `last_hidden_state`. Where a hidden layer is used,
    `hidden_states.0` and so on follow, of the embeddings and of each layer.
    """
    shapes = {"input_ids": (ANY, text_encoder.context_length)}
    example, trial = (
        {"input_ids": text_encoder.tokenize(prompts)} for prompts in (["a", "a b"], ["one of three", "", "a"])
    )
    model = text_encoder.model
    projected, has_hidden = hasattr(model, "text_projection"), text_encoder.hidden_layer is not None
    outputs = ["text_embeds", "last_hidden_state"] if projected else ["last_hidden_state", "pooler_output"]
    if has_hidden:
        outputs += [f"hidden_states.{number}" for number in range(model.config.num_hidden_layers + 1)]
    traced = TracedText(model, hidden_states=has_hidden, projected=projected)
    return TracedNetwork(traced, shapes, outputs, example, trial)


def _random(*shape: int) -> Tensor:
    """Standard normal, the same every time."""
    return torch.randn(shape, generator=torch.Generator("cpu").manual_seed(0))


def write_openvino(parts: ModelParts, folder: Path) -> None:
    """Write a model's networks in float32, with their configurations, into an existing folder.

    Args:
        parts: on the CPU, in float32.

    Raises:
        UserError: OpenVINO is not installed, or the disk is full or not writable.
    """
    for name, traced in traced_networks(parts).items():
        write_network(traced.convert(), folder / name)
    parts.denoiser.unet.save_config(folder / "unet")
    for name in ("vae_encoder", "vae_decoder"):
        parts.autoencoder.vae.save_config(folder / name)
    for each in parts.text_encoder.encoders:
        each.model.config.save_pretrained(folder / f"text_encoder{each.suffix}")
    save_small_files(parts, folder)

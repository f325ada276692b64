"""An exported OpenVINO folder in diffusers' stock pipeline, in which torch computes only the sampler's steps."""

import json
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from ldm.models.engines.openvino_network import MODEL_FILE, import_openvino


class CompiledNetwork(nn.Module):
    """An OpenVINO network with the attributes that a stock pipeline needs: `config`, `dtype` and `device`."""

    dtype = torch.float32
    device = torch.device("cpu")

    def __init__(self, folder: Path) -> None:
        from diffusers.configuration_utils import FrozenDict

        super().__init__()
        self.config = FrozenDict(json.loads((folder / "config.json").read_text(encoding="utf-8")))
        settings = {"INFERENCE_PRECISION_HINT": "f32"}
        self._compiled = import_openvino().Core().compile_model(folder / MODEL_FILE, "CPU", settings)

    def run(self, **inputs: Tensor) -> tuple[Tensor, ...]:
        """The network's outputs, in order."""
        outputs = self._compiled({name: value.contiguous().numpy() for name, value in inputs.items()})
        return tuple(torch.from_numpy(outputs[port].copy()) for port in self._compiled.outputs)


class CompiledUNet(CompiledNetwork):
    """Called like a `UNet2DConditionModel`."""

    @property
    def add_embedding(self) -> Any:
        """The stock pipeline reads the width of the added conditions from here."""
        width = self.config.projection_class_embeddings_input_dim
        return SimpleNamespace(linear_1=SimpleNamespace(in_features=width))

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        added_cond_kwargs: Mapping[str, Tensor] | None = None,
        **_: Any,
    ) -> tuple[Tensor, ...]:
        timesteps = timestep.float().reshape(-1)
        added = {name: value.float() for name, value in (added_cond_kwargs or {}).items()}
        return self.run(
            sample=sample, timestep=timesteps, encoder_hidden_states=encoder_hidden_states, **added
        )


class CompiledText(CompiledNetwork):
    """Called like a `CLIPTextModel`, with the hidden states if it has them."""

    def forward(self, input_ids: Tensor, output_hidden_states: bool = False, **_: Any) -> Any:
        first, second, *hidden = self.run(input_ids=input_ids)
        return TextOutput(first, second, hidden) if output_hidden_states else (first, second)


class TextOutput(tuple[Tensor, ...]):
    """The outputs of a text encoder by number, and `hidden_states`."""

    hidden_states: list[Tensor]

    def __new__(cls, first: Tensor, second: Tensor, hidden: list[Tensor]) -> "TextOutput":
        made = super().__new__(cls, (first, second))
        made.hidden_states = hidden
        return made


class CompiledAutoencoder(CompiledNetwork):
    """Called like an `AutoencoderKL`; the decoder, with the encoder inside."""

    def __init__(self, decoder: Path, encoder: Path) -> None:
        super().__init__(decoder)
        self.encoder = CompiledNetwork(encoder)

    def encode(self, pixel_values: Tensor) -> Any:
        """pixel_values [B, 3, H, W] -> an output with `latent_dist`, the posterior."""
        from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
        from diffusers.models.modeling_outputs import AutoencoderKLOutput

        moments = self.encoder.run(sample=pixel_values)[0]
        return AutoencoderKLOutput(latent_dist=DiagonalGaussianDistribution(moments))

    def decode(self, latents: Tensor, **_: Any) -> tuple[Tensor, ...]:
        """Unscaled latents [B, C, h, w] -> pixel_values [B, 3, H, W]."""
        return self.run(latent_sample=latents)


def read_openvino(task: Mapping[str, Any]) -> Any:
    """The stock pipeline of an exported folder, `task["folder"]`; a reader for `ldm.export.verify.readers`."""
    import diffusers
    from transformers import CLIPTokenizer

    folder = Path(task["folder"])
    config = json.loads((folder / "scheduler" / "scheduler_config.json").read_text(encoding="utf-8"))
    scheduler_class = getattr(diffusers, config.get("_class_name", "DDIMScheduler"))
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    text = {name: CompiledText(folder / name) for name in index if name.startswith("text_encoder")}
    tokenizers = {
        name: CLIPTokenizer.from_pretrained(folder / name, local_files_only=True)
        for name in index
        if name.startswith("tokenizer")
    }
    return getattr(diffusers, index["_class_name"])(
        vae=CompiledAutoencoder(folder / "vae_decoder", folder / "vae_encoder"),
        **text,
        **tokenizers,
        unet=CompiledUNet(folder / "unet"),
        scheduler=scheduler_class.from_pretrained(folder / "scheduler", local_files_only=True),
        **_options(index),
    )


def _options(index: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a stock pipeline that are no networks."""
    if "text_encoder_2" in index:
        return {
            "force_zeros_for_empty_prompt": index["force_zeros_for_empty_prompt"],
            "add_watermarker": False,
        }
    return {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}

"""An exported OpenVINO folder in diffusers' stock pipeline, in which torch computes only the sampler's steps."""

import json
from collections.abc import Mapping
from pathlib import Path
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

    def forward(
        self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor, **_: Any
    ) -> tuple[Tensor, ...]:
        timesteps = timestep.float().reshape(-1)
        return self.run(sample=sample, timestep=timesteps, encoder_hidden_states=encoder_hidden_states)


class CompiledText(CompiledNetwork):
    """Called like a `CLIPTextModel`."""

    def forward(self, input_ids: Tensor, **_: Any) -> tuple[Tensor, ...]:
        return self.run(input_ids=input_ids)


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
    return getattr(diffusers, index["_class_name"])(
        vae=CompiledAutoencoder(folder / "vae_decoder", folder / "vae_encoder"),
        text_encoder=CompiledText(folder / "text_encoder"),
        tokenizer=CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True),
        unet=CompiledUNet(folder / "unet"),
        scheduler=scheduler_class.from_pretrained(folder / "scheduler", local_files_only=True),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )

"""LoRAs on tiny models, as after training, and in files of every format."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm.models.adapters.lora import LoraSettings, LoraWeights, add_lora, lora_parameters, lora_weights
from ldm.models.adapters.lora_files import write_lora_diffusers, write_lora_kohya, write_lora_peft
from ldm.models.adapters.lora_layers import LoraLayer, from_layers, to_layers
from ldm.models.loading.model import ModelParts
from tests.support.tiny_models import make_sd1, make_sd2

EVERYWHERE = LoraSettings(rank=3, alpha=7, target_modules="all", text_encoder=True)
MADE_BY: list[Callable[[Path], ModelParts]] = [make_sd1, make_sd2]


def networks_of(parts: ModelParts) -> dict[str, Any]:
    return parts.lora_networks()


def predict(parts: ModelParts) -> Tensor:
    """The model's predictions for two prompts, [2, 4, 8, 8], with gradients if enabled."""
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    prompts = parts.encode(["a red apple", "a small green circle"], size=(16, 16))
    output: Tensor = parts.denoiser(noise, torch.tensor([10, 700]), prompts)
    return output


def disturb(networks: dict[str, Any]) -> None:
    """Change every weight of the LoRA, as training would."""
    generator = torch.Generator().manual_seed(1)
    for network in networks.values():
        for parameter in lora_parameters(network):
            parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)


def trained(parts: ModelParts, settings: LoraSettings = EVERYWHERE, seed: int = 3) -> LoraWeights:
    """A LoRA with these settings; it stays active in `parts`."""
    add_lora(networks_of(parts), settings, seed)
    disturb(networks_of(parts))
    return lora_weights(networks_of(parts))


def uneven(weights: LoraWeights, parts: ModelParts) -> LoraWeights:
    """The same LoRA with another rank or alpha in some layers; `parts` have no LoRA."""
    found: dict[str, dict[str, LoraLayer]] = {}
    for part, layers in to_layers(weights).items():
        for index, (name, layer) in enumerate(sorted(layers.items())):
            rank = 2 if index % 5 == 0 else layer.rank
            alpha = 2.5 if index % 3 == 0 else layer.alpha
            found.setdefault(part, {})[name] = LoraLayer(layer.down[:rank], layer.up[:, :rank], alpha)
    return from_layers(found, networks_of(parts))


def as_diffusers(weights: LoraWeights, folder: Path, **options: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    write_lora_diffusers(weights, folder / "pytorch_lora_weights.safetensors", **options)
    return folder / "pytorch_lora_weights.safetensors"


def as_kohya(weights: LoraWeights, folder: Path, **options: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    write_lora_kohya(weights, folder / "film.safetensors", **options)
    return folder / "film.safetensors"


def as_peft(weights: LoraWeights, folder: Path, **options: Any) -> Path:
    write_lora_peft(weights, folder, **options)
    return folder


FORMATS: dict[str, Callable[..., Path]] = {"diffusers": as_diffusers, "kohya": as_kohya, "peft": as_peft}


def assert_same(one: LoraWeights, other: LoraWeights) -> None:
    """Assert that weights and configurations are equal, bit by bit."""
    assert one.configs == other.configs
    assert one.tensors.keys() == other.tensors.keys()
    for name, tensor in one.tensors.items():
        assert tensor.dtype == torch.float32 and torch.equal(tensor, other.tensors[name]), name

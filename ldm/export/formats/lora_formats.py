"""What a LoRA's file says of itself in its header: ModelSpec, and the `ss_` keys that kohya's programs began with.

Names and numbers only: no path, no prompt, nothing of who trained it or where.
"""

import json
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

from ldm.config import read_yaml
from ldm.export.export_source import ExportSource
from ldm.export.formats.single_file import has_known_unet, modelspec_metadata
from ldm.models.adapters.lora import LoraWeights
from ldm.models.adapters.lora_layers import LoraLayer, to_layers

RUN_KEYS = {
    "ss_seed": "seed",
    "ss_learning_rate": "optim.learning_rate",
    "ss_max_train_steps": "num_steps",
    "ss_total_batch_size": "global_batch_size",
}
"""kohya's keys, and the numbers in a run's configuration that they are."""


def lora_metadata(source: ExportSource, *, title: str, licence: str | None = None) -> dict[str, str]:
    """The header of a LoRA's file; the hash of its tensors is added when it is written.

    Args:
        source: with a LoRA.
        title: what it is called.
        licence: of the weights, an SPDX name such as "mit".
    """
    assert source.lora is not None
    fields = modelspec_metadata(source.parts, title=title, licence=licence)
    known = has_known_unet(source.parts)
    architecture = fields["modelspec.architecture"] if known else "latent-diffusion"
    fields["modelspec.architecture"] = f"{architecture}/lora"
    fields["modelspec.implementation"] = "diffusers"
    size = (source.parts.defaults.width, source.parts.defaults.height)
    fields["modelspec.resolution"] = "x".join(map(str, size))
    own = {
        **(_generation(architecture) if known else {}),
        "ss_zero_terminal_snr": str(bool(source.parts.scheduler_config.get("rescale_betas_zero_snr"))),
        "ss_resolution": str(size),
        "ss_output_name": title,
        **_network(source.lora),
    }
    if source.adapter:
        own["ss_sd_model_name"] = _plain_name(source.adapter.base)
    return fields | own | (_run_numbers(source.run) if source.run else {})


def _generation(architecture: str) -> dict[str, str]:
    """Which Stable Diffusion it is for: what other programs choose by."""
    is_second = "-v2" in architecture
    return {"ss_base_model_version": "sd_v2" if is_second else "sd_v1", "ss_v2": str(is_second)}


def _network(weights: LoraWeights) -> dict[str, str]:
    """Rank, alpha and kind, of the UNet's linear layers where it has any changed."""
    part = "unet" if "unet" in weights.configs else next(iter(weights.configs))
    config, layers = weights.configs[part], to_layers(weights)[part].values()
    arguments = _arguments(config, [layer for layer in layers if _is_convolution(layer)])
    return {
        "ss_network_module": "lycoris.kohya" if config["use_dora"] else "networks.lora",
        "ss_network_dim": str(config["r"]),
        "ss_network_alpha": str(config["lora_alpha"]),
        **({"ss_network_args": json.dumps(arguments)} if arguments else {}),
    }


def _arguments(config: Mapping[str, Any], convolutions: list[LoraLayer]) -> dict[str, str]:
    found = {"algo": "lora", "dora_wd": "True"} if config["use_dora"] else {}
    if convolutions:
        found |= {"conv_dim": str(convolutions[0].rank), "conv_alpha": str(convolutions[0].alpha)}
    return found


def _is_convolution(layer: LoraLayer) -> bool:
    """Of more than one pixel, which kohya's programs train on request only."""
    return layer.down.ndim == 4 and layer.down.shape[-1] > 1


def _plain_name(base: str) -> str:
    """A model's name without the folders that it lies in."""
    path = PurePath(base)
    return path.parent.name if path.name == "pipeline" else path.name


def _run_numbers(run: Path) -> dict[str, str]:
    """The numbers of a training run, as far as its configuration has them."""
    settings = read_yaml(run / "config.yaml")
    found: dict[str, str] = {}
    for key, path in RUN_KEYS.items():
        value: Any = settings
        for part in path.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        if isinstance(value, int | float):
            found[key] = str(value)
    return found

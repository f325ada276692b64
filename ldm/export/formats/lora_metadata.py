"""The metadata in a LoRA file's header: ModelSpec, and the `ss_` keys that kohya's programs introduced.

Only names and numbers: no path, no prompt, nothing about who trained it or where.
"""

import json
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

from ldm.config import read_yaml
from ldm.export.export_source import ExportSource
from ldm.export.formats.single_file import has_known_unet, modelspec_metadata
from ldm.models.adapters.lora import LoraWeights, is_lokr_config
from ldm.models.adapters.lora_layers import LoraLayer, to_layers

RUN_KEYS = {
    "ss_seed": "seed",
    "ss_learning_rate": "optim.learning_rate",
    "ss_max_train_steps": "num_steps",
    "ss_total_batch_size": "global_batch_size",
}
"""kohya's keys, and the settings of a run that they hold."""


def lora_metadata(source: ExportSource, *, title: str, licence: str | None = None) -> dict[str, str]:
    """The metadata of a LoRA's file; the hash of its tensors is added on writing.

    Args:
        source: must have a LoRA.
        licence: the licence of the weights, an SPDX name such as "mit".
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
    """Which Stable Diffusion the LoRA is for; other programs look at this."""
    is_second = "-v2" in architecture
    version = "sdxl_base_v1-0" if "-xl-" in architecture else "sd_v2" if is_second else "sd_v1"
    return {"ss_base_model_version": version, "ss_v2": str(is_second)}


def _network(weights: LoraWeights) -> dict[str, str]:
    """Rank, alpha and kind of the UNet's linear layers, or of the text encoder's if the UNet is unchanged."""
    part = "unet" if "unet" in weights.configs else next(iter(weights.configs))
    config = weights.configs[part]
    if is_lokr_config(config):
        return _lokr(config)
    layers = to_layers(weights)[part].values()
    arguments = _arguments(config, [layer for layer in layers if _is_convolution(layer)])
    return {
        "ss_network_module": "lycoris.kohya" if config["use_dora"] else "networks.lora",
        "ss_network_dim": str(config["r"]),
        "ss_network_alpha": str(config["lora_alpha"]),
        **({"ss_network_args": json.dumps(arguments)} if arguments else {}),
    }


def _lokr(config: Mapping[str, Any]) -> dict[str, str]:
    return {
        "ss_network_module": "lycoris.kohya",
        "ss_network_dim": str(config["r"]),
        "ss_network_alpha": str(config["alpha"]),
        "ss_network_args": json.dumps({"algo": "lokr", "factor": str(config["decompose_factor"])}),
    }


def _arguments(config: Mapping[str, Any], convolutions: list[LoraLayer]) -> dict[str, str]:
    found = {"algo": "lora", "dora_wd": "True"} if config["use_dora"] else {}
    if convolutions:
        found |= {"conv_dim": str(convolutions[0].rank), "conv_alpha": str(convolutions[0].alpha)}
    return found


def _is_convolution(layer: LoraLayer) -> bool:
    """Whether the kernel is larger than 1 x 1; kohya's programs train such layers only on request."""
    return layer.down.ndim == 4 and layer.down.shape[-1] > 1


def _plain_name(base: str) -> str:
    """A model's name without its path."""
    path = PurePath(base)
    return path.parent.name if path.name == "pipeline" else path.name


def _run_numbers(run: Path) -> dict[str, str]:
    """Numbers from a training run's configuration; missing ones are left out."""
    settings = read_yaml(run / "config.yaml")
    found: dict[str, str] = {}
    for key, path in RUN_KEYS.items():
        value: Any = settings
        for part in path.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        if isinstance(value, int | float):
            found[key] = str(value)
    return found

"""ControlNets and T2I-Adapters from folders, files or the Hub, checked against the model that they control."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from ldm.errors import UserError, warn
from ldm.io.files import remembered_sha256
from ldm.io.json_files import read_object, shortened
from ldm.models.control.control_file import read_control_file
from ldm.models.control.hints import check_kind
from ldm.models.control.networks import CONTROLNET, T2I_ADAPTER, ControlNetwork
from ldm.models.families.family import Component
from ldm.models.identity import changed_parts, network_settings
from ldm.models.loading.components import load_network
from ldm.models.loading.folder import ADAPTER, VARIANTS, check_keys
from ldm.models.loading.source import HUB_ID, network_from_hub
from ldm.models.loading.weights_check import weights_files
from ldm.models.parts import ModelParts

STEM = "diffusion_pytorch_model"
COMPONENTS: Mapping[str, Component] = {
    CONTROLNET: Component("diffusers", (CONTROLNET,), "diffusers.models.controlnets.controlnet", stem=STEM),
    T2I_ADAPTER: Component("diffusers", (T2I_ADAPTER,), "diffusers.models.adapter", stem=STEM),
}
PLACES = "give a ControlNet or T2I-Adapter: its folder in the diffusers layout, a run, a .safetensors file, or a Hub id"
XL_ADAPTER = "full_adapter_xl"
"""The `adapter_type` of T2I-Adapters for SDXL."""
MUST_AGREE = (
    "block_out_channels", "layers_per_block", "down_block_types", "cross_attention_dim", "addition_embed_type",
    "projection_class_embeddings_input_dim",
)  # fmt: skip
"""Settings that a ControlNet and the UNet that it controls have in common."""


def load_controls(
    given: Mapping[str, str | Path],
    parts: ModelParts,
    dtype: torch.dtype = torch.float32,
    base_parts: Callable[[], Mapping[str, str]] | None = None,
) -> dict[str, ControlNetwork]:
    """The networks, by the kind of their hints.

    Args:
        given: places as of `find_control`.
        base_parts: returns the `Identity.base_parts` of the model; None: the base is not compared.

    Raises:
        UserError: a kind is unknown, or a folder has no network that fits the model.

    Warns:
        LdmWarning: one was trained here with another base model of the same shape.
    """
    found = {}
    for kind, place in given.items():
        check_kind(kind)
        path, name = find_control(place)
        found[kind] = load_control(kind, path, name, parts, dtype)
        if base_parts is not None and path.is_dir():
            _warn_of_base(path, base_parts)
    return found


def load_control(kind: str, path: Path, name: str, parts: ModelParts, dtype: torch.dtype) -> ControlNetwork:
    """The network in a folder or a file.

    Raises:
        UserError: its files are damaged, or it does not fit the model.
    """
    if path.is_dir():
        network, files = _from_folder(path, dtype)
    else:
        network, files = read_control_file(path, COMPONENTS[CONTROLNET], parts, dtype), [path]
    fault = next(_faults(network, parts), None)
    if fault:
        raise UserError(f"{path} does not fit this model: {fault}", "it is for another base model")
    return ControlNetwork(kind, name, network_hash(files, network), network)


def _from_folder(folder: Path, dtype: torch.dtype) -> tuple[Any, list[Path]]:
    """The network in a folder, and the files of its weights."""
    path = folder / "config.json"
    config = read_object(path)
    check_keys(path, config)
    component = COMPONENTS.get(str(config.get("_class_name")))
    if component is None:
        said = shortened(config.get("_class_name"))
        raise UserError(f"{path} is of the class {said}", f"supported: {', '.join(COMPONENTS)}")
    variant, files = _weights(folder)
    return load_network(component, folder, dtype, variant).eval().requires_grad_(False), files


def find_control(place: str | Path) -> tuple[Path, str]:
    """The folder or the file of a network, and its name without a path.

    Args:
        place: a folder in the diffusers layout, a run that trained a ControlNet (with `pipeline/`), a .safetensors file
            of a ControlNet, or a Hub id as of `ldm.models.loading.source.find_model`.

    Raises:
        UserError: there is no such place, or the folder has no `config.json`.
    """
    path = Path(place).expanduser()
    if path.is_file():
        return path, path.name
    if not path.is_dir() and isinstance(place, str) and HUB_ID.fullmatch(place):
        return network_from_hub(place, STEM), place
    folder = path / "pipeline" if (path / "pipeline").is_dir() else path
    if not (folder / "config.json").is_file():
        raise UserError(f"{path} has no config.json", PLACES)
    return folder, folder.resolve().parent.name if folder.name == "pipeline" else folder.resolve().name


def _weights(folder: Path) -> tuple[str | None, list[Path]]:
    for variant in (None, *VARIANTS):
        if files := weights_files(folder, STEM, variant):
            return variant, files
    raise UserError(f"{folder} has no {STEM}.safetensors", "only safetensors are read")


def network_hash(files: list[Path], network: Any) -> str:
    """One SHA-256 over a network's files and its settings."""
    contents = [[remembered_sha256(path) for path in files], network_settings(network)]
    return hashlib.sha256(json.dumps(contents, sort_keys=True, default=str).encode()).hexdigest()


def _faults(network: Any, parts: ModelParts) -> Iterator[str]:
    """Why a network does not fit a model, in a few words."""
    unet, config = parts.denoiser.unet.config, network.config
    factor = parts.autoencoder.pixels_per_latent
    if type(network).__name__ == T2I_ADAPTER:
        yield from _adapter_faults(config, unet, factor)
        return
    for key in MUST_AGREE:
        given, wanted = (_plain(each.get(key)) for each in (config, unet))
        if given != wanted:
            yield f"it has {key} {shortened(given)}, the unet {shortened(wanted)}"
    if config.in_channels != parts.denoiser.latent_channels:
        yield f"it takes latents of {config.in_channels} channels, not {parts.denoiser.latent_channels}"
    halved = 2 ** (len(config.conditioning_embedding_out_channels) - 1)
    if halved != factor:
        yield f"it takes hints of {halved} pixels per latent, the vae makes {factor}"
    if config.conditioning_channels != 3:
        yield f"it takes hints of {config.conditioning_channels} channels, not 3"


def _adapter_faults(config: Any, unet: Any, factor: int) -> Iterator[str]:
    is_xl, unet_is_xl = config.adapter_type == XL_ADAPTER, "CrossAttn" not in unet.down_block_types[0]
    if is_xl != unet_is_xl:
        yield f"its adapter_type is {config.adapter_type}, which is{'' if is_xl else ' not'} for SDXL"
    # in SDXL, residuals are added after the first downsampling, and once more in the middle
    channels = [*unet.block_out_channels, *unet.block_out_channels[-1:]] if is_xl else unet.block_out_channels
    if _plain(config.channels) != _plain(channels):
        yield f"it has channels {list(config.channels)}, the unet {list(channels)}"
    per_pixel = 2 * factor if is_xl else factor
    if config.downscale_factor != per_pixel:
        yield f"its downscale_factor is {config.downscale_factor}, for this model it is {per_pixel}"
    if config.in_channels not in (1, 3):
        yield f"it takes hints of {config.in_channels} channels, not 1 or 3"


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, list | tuple) else value


def _warn_of_base(folder: Path, base_parts: Callable[[], Mapping[str, str]]) -> None:
    """A network may be used with other models of the same shape, but was not trained for them."""
    trained_on = read_object(folder / ADAPTER).get("base_parts") if (folder / ADAPTER).is_file() else None
    if isinstance(trained_on, dict) and (changed := changed_parts(trained_on, base_parts())):
        warn(f"{folder} was trained with another base model: its {', '.join(changed)} differ")

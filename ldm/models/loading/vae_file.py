"""An autoencoder from elsewhere: a folder of diffusers, or a file with its names or those of the original programs."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm.errors import UserError
from ldm.io.files import open_tensors
from ldm.io.json_files import read_object
from ldm.models.families.original_names import VAE, vae_from_original
from ldm.models.families.original_shapes import read_vae_settings
from ldm.models.families.stable_diffusion import VAE_COMPONENT
from ldm.models.loading.components import build_network, load_vae
from ldm.models.loading.folder import PICKLES, VARIANTS, check_keys
from ldm.models.loading.weights_check import weights_files


def load_autoencoder(path: Path) -> Any:
    """An `AutoencoderKL` in float32, on the CPU.

    Args:
        path: the folder of an autoencoder or of a model, or a .safetensors file of either.

    Raises:
        UserError: there is none, or it is damaged.
    """
    if path.is_dir():
        return _from_folder(path / "vae" if (path / "vae").is_dir() else path)
    if path.suffix in PICKLES:
        raise UserError(f"{path} is a pickle", "only safetensors are read")
    if not path.is_file():
        raise UserError(f"no autoencoder {str(path)!r}", "name a folder or a .safetensors file")
    return _from_file(path)


def autoencoder_files(path: Path) -> list[Path]:
    """The files that decide which autoencoder `load_autoencoder` reads."""
    if not path.is_dir():
        return [path]
    folder = path / "vae" if (path / "vae").is_dir() else path
    return [folder / "config.json", *_weights(folder)[1]]


def _weights(folder: Path) -> tuple[str | None, list[Path]]:
    """The variant to read and its files."""
    assert VAE_COMPONENT.stem is not None
    for variant in (None, *VARIANTS):
        if files := weights_files(folder, VAE_COMPONENT.stem, variant):
            return variant, files
    raise UserError(f"{folder} has no {VAE_COMPONENT.stem}.safetensors", "name the folder of an autoencoder")


def _from_folder(folder: Path) -> Any:
    variant, _ = _weights(folder)
    check_keys(folder / "config.json", read_object(folder / "config.json"))
    return load_vae(folder, torch.float32, variant)


def _from_file(path: Path) -> Any:
    """Names of the original programs may begin with `first_stage_model.`, or with nothing."""
    with open_tensors(path) as file:
        names = list(file.keys())
        inside = [name for name in names if name.startswith(VAE)]
        found = {name.removeprefix(VAE): file.get_tensor(name) for name in inside or names}
    weights = {name: tensor for name, tensor in found.items() if not name.startswith(("loss.", "model_ema."))}
    try:
        weights = weights if _has_diffusers_names(weights) else vae_from_original(weights)
        settings = read_vae_settings(weights)
    except KeyError as error:
        raise UserError(
            f"{path} holds no autoencoder of Stable Diffusion",
            f"name another file: {error.args[0]} is missing, or not one of its weights",
        ) from None
    try:
        return build_network("vae", VAE_COMPONENT, settings, weights, torch.float32)
    except UserError as error:
        raise UserError(f"{path}: {error.what}", error.hint) from error


def _has_diffusers_names(weights: dict[str, Tensor]) -> bool:
    return any(name.startswith("encoder.down_blocks.") for name in weights)

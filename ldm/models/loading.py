"""Load and save one component of a model: local files, safetensors only, every weight accounted for."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from ldm.errors import UserError
from ldm.files import read_json, write_json


def load_unet(folder: Path, dtype: torch.dtype, variant: str | None = None) -> Any:
    """The `UNet2DConditionModel` of a folder, on the CPU.

    Args:
        variant: `fp16` reads the files with that in their names.

    Raises:
        UserError: a file is damaged, or a weight is missing, left over or of the wrong shape.
    """
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    return _load(UNet2DConditionModel, folder, dtype, variant)


def load_vae(folder: Path, dtype: torch.dtype, variant: str | None = None) -> Any:
    """The `AutoencoderKL` of a folder, on the CPU; arguments and errors as `load_unet`."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    return _load(AutoencoderKL, folder, dtype, variant)


def load_text_model(folder: Path, dtype: torch.dtype, variant: str | None = None) -> Any:
    """The `CLIPTextModel` of a folder, on the CPU; arguments and errors as `load_unet`."""
    from transformers.models.clip.modeling_clip import CLIPTextModel

    return _load(CLIPTextModel, folder, dtype, variant)


def load_tokenizer(folder: Path) -> Any:
    """The `CLIPTokenizer` of a folder.

    Raises:
        UserError: its files are missing or damaged.
    """
    from transformers.models.clip.tokenization_clip import CLIPTokenizer

    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json")):
        raise UserError(f"{folder} has neither tokenizer.json nor vocab.json", "the model is incomplete")
    with _load_errors(folder):
        return CLIPTokenizer.from_pretrained(folder, local_files_only=True)


def _load(cls: Any, folder: Path, dtype: torch.dtype, variant: str | None) -> Any:
    with _load_errors(folder), _no_progress_bars():
        model, info = cls.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, output_loading_info=True, variant=variant
        )
    # A fresh random weight in place of a missing one would only show in the pictures.
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        names = sorted(str(name) for name in info[kind] if not str(name).endswith("position_ids"))
        if names:
            raise UserError(f"{folder}: {kind.replace('_', ' ')} in the weights: {names[0]}", _MEND)
    return _cast(model, dtype)


_MEND = "config.json and the safetensors do not belong together"


@contextmanager
def _load_errors(folder: Path) -> Iterator[None]:
    """What the libraries raise for damaged files, as one line that names the folder."""
    try:
        yield
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{folder} cannot be loaded ({reason})", "restore its files") from error


def save_network(network: Any, folder: Path, dtype: torch.dtype, max_shard_size: str) -> None:
    """Write a diffusers or transformers network as safetensors, split into files of `max_shard_size`."""
    stored = _cast(copy.deepcopy(network).cpu(), dtype)
    with _no_progress_bars():
        stored.save_pretrained(folder, max_shard_size=max_shard_size, **_names_for_old_readers(stored))
    _compute_in_float32(folder / "config.json")


def _cast(network: Any, dtype: torch.dtype) -> Any:
    """`network.to(dtype)`, without the warning that diffusers has for it."""
    return nn.Module.to(network, dtype)


def _compute_in_float32(config_file: Path) -> None:
    """transformers computes in the dtype of its config, diffusers in float32: a stock pipeline needs one for both."""
    config = read_json(config_file)
    if "dtype" in config:
        write_json(config_file, config | {"dtype": "float32"})


def _names_for_old_readers(network: nn.Module) -> dict[str, Any]:
    """transformers before 5 has `text_model.` before the names of a CLIPTextModel; later ones read both."""
    if type(network).__name__ != "CLIPTextModel":
        return {}
    prefix = "" if hasattr(network, "text_model") else "text_model."
    return {"state_dict": {prefix + name: tensor for name, tensor in network.state_dict().items()}}


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    """Keep the libraries' own progress bars off the terminal, which is the caller's."""
    import diffusers.utils.logging
    import transformers.utils.logging

    logs: list[Any] = [diffusers.utils.logging, transformers.utils.logging]
    shown = [log for log in logs if log.is_progress_bar_enabled()]
    for log in shown:
        log.disable_progress_bar()
    try:
        yield
    finally:
        for log in shown:
            log.enable_progress_bar()

"""Load and save one component of a model: local files, safetensors only, every weight accounted for."""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from ldm.errors import UserError
from ldm.io.files import read_json, write_json
from ldm.io.safetensors_header import TensorEntry
from ldm.models.loading.weights_check import (
    HINT,
    STEMS,
    check_amount,
    empty_network,
    name_faults,
    stored_tensors,
)


def load_unet(folder: Path, dtype: torch.dtype, variant: str | None = None) -> Any:
    """The `UNet2DConditionModel` of a folder, on the CPU.

    Args:
        variant: `fp16` reads the files with that in their names.

    Raises:
        UserError: a file is damaged, or a weight is missing, left over or of the wrong shape.
    """
    return _load("unet", folder, dtype, variant)


def load_vae(folder: Path, dtype: torch.dtype, variant: str | None = None) -> Any:
    """The `AutoencoderKL` of a folder, on the CPU; arguments and errors as `load_unet`."""
    return _load("vae", folder, dtype, variant)


def load_text_model(folder: Path, dtype: torch.dtype, variant: str | None = None) -> Any:
    """The `CLIPTextModel` of a folder, on the CPU; arguments and errors as `load_unet`."""
    return _load("text_encoder", folder, dtype, variant)


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


def weights_faults(part: str, folder: Path, variant: str | None = None) -> list[str]:
    """Weights of a component that are missing, left over or of another shape than config.json says; none is read.

    Args:
        part: "unet", "vae" or "text_encoder".

    Raises:
        UserError: a header or the configuration is faulty, or asks for far more than the files hold.
    """
    with _load_errors(folder), _no_progress_bars():
        return list(name_faults(*_described(part, folder, variant)))


def _described(part: str, folder: Path, variant: str | None) -> tuple[nn.Module, Mapping[str, TensorEntry]]:
    """What config.json says and what the headers say, when the one does not ask for more than the other has."""
    stored = stored_tensors(folder, STEMS[part], variant)
    network = empty_network(_network_class(part), folder, len(stored))
    check_amount(folder, network, stored)
    return network, stored


def _network_class(part: str) -> Any:
    if part == "unet":
        from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

        return UNet2DConditionModel
    if part == "vae":
        from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

        return AutoencoderKL
    from transformers.models.clip.modeling_clip import CLIPTextModel

    return CLIPTextModel


def _load(part: str, folder: Path, dtype: torch.dtype, variant: str | None) -> Any:
    with _load_errors(folder), _no_progress_bars():
        _described(part, folder, variant)
        model, info = _network_class(part).from_pretrained(
            folder, local_files_only=True, use_safetensors=True, output_loading_info=True, variant=variant
        )
    # A fresh random weight in place of a missing one would only show in the pictures.
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        names = sorted(str(name) for name in info[kind] if not str(name).endswith("position_ids"))
        if names:
            raise UserError(f"{folder}: {kind.replace('_', ' ')} in the weights: {names[0]}", HINT)
    return _cast(model, dtype)


LIBRARY_ERRORS = (
    OSError, SafetensorError, ValueError, LookupError, TypeError, RuntimeError, ArithmeticError, AttributeError,
    AssertionError,
)  # fmt: skip
"""What diffusers, transformers and torch raise for files and configurations that are not what they should be."""


@contextmanager
def _load_errors(folder: Path) -> Iterator[None]:
    """What the libraries raise for damaged files, as one line that names the folder."""
    try:
        yield
    except LIBRARY_ERRORS as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{folder} cannot be loaded ({reason})", "restore its files") from error


def save_network(
    network: Any, folder: Path, dtype: torch.dtype, max_shard_size: str, variant: str | None = None
) -> None:
    """Write a diffusers or transformers network as safetensors, split into files of `max_shard_size`.

    Args:
        variant: goes into the files' names, such as "fp16".
    """
    stored = _cast(copy.deepcopy(network).cpu(), dtype)
    with _no_progress_bars():
        stored.save_pretrained(
            folder, max_shard_size=max_shard_size, variant=variant, **_names_for_old_readers(stored)
        )
    _clean_config(folder / "config.json")


def _cast(network: Any, dtype: torch.dtype) -> Any:
    """`network.to(dtype)`, without the warning that diffusers has for it."""
    return nn.Module.to(network, dtype)


def _clean_config(config_file: Path) -> None:
    """Leave out where a network was loaded from, which is a path of this machine; and name one dtype for all parts.

    transformers computes in the dtype of its config, diffusers in float32: a stock pipeline needs one for both.
    """
    config = read_json(config_file)
    config.pop("_name_or_path", None)
    write_json(config_file, config | ({"dtype": "float32"} if "dtype" in config else {}))


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

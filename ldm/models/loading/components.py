"""Load and save one component of a model: local files, safetensors only, every weight accounted for."""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import Tensor, nn

from ldm.errors import UserError
from ldm.io.files import write_json, write_tensors
from ldm.io.json_files import read_json
from ldm.io.memory import memory_fault
from ldm.io.safetensors_header import TensorEntry
from ldm.models.families.family import Component
from ldm.models.families.stable_diffusion import (
    CLIP_COMPONENT,
    TOKENIZER_COMPONENT,
    UNET_COMPONENT,
    VAE_COMPONENT,
)
from ldm.models.loading.component_files import check_files, check_tokenizer
from ldm.models.loading.weights_check import (
    HINT,
    NetworkShapes,
    check_amount,
    described,
    name_faults,
    stored_tensors,
)


def load_unet(folder: Path, dtype: torch.dtype, variant: str | None = None) -> Any:
    """The `UNet2DConditionModel` in a folder; arguments and errors as `load_network`."""
    return load_network(UNET_COMPONENT, folder, dtype, variant)


def load_vae(folder: Path, dtype: torch.dtype, variant: str | None = None) -> Any:
    """The `AutoencoderKL` in a folder; arguments and errors as `load_network`."""
    return load_network(VAE_COMPONENT, folder, dtype, variant)


def load_text_model(folder: Path, dtype: torch.dtype, variant: str | None = None) -> Any:
    """The `CLIPTextModel` in a folder; arguments and errors as `load_network`."""
    return load_network(CLIP_COMPONENT, folder, dtype, variant)


def load_network(component: Component, folder: Path, dtype: torch.dtype, variant: str | None = None) -> Any:
    """The network in a folder, on the CPU.

    Args:
        variant: read the files with this in their names, such as "fp16".

    Raises:
        UserError: a file is damaged, or a weight is missing, left over or of the wrong shape.
    """
    check_files(folder)
    with _load_errors(folder), _no_progress_bars():
        _described(component, folder, variant)
        # transformers would first round the weights to the dtype that its config.json names
        own: dict[str, Any] = {"dtype": dtype} if component.library == "transformers" else {}
        model, info = component.load_class().from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
            variant=variant,
            **own,
        )
    # The libraries fill in random numbers for a missing weight, which would only show in the images.
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        names = sorted(str(name) for name in info[kind] if not str(name).endswith("position_ids"))
        if names:
            raise UserError(f"{folder}: {kind.replace('_', ' ')} in the weights: {names[0]}", HINT)
    return _cast(model, dtype)


def load_tokenizer(folder: Path, component: Component = TOKENIZER_COMPONENT) -> Any:
    """The tokenizer in a folder.

    Raises:
        UserError: its files are missing or damaged.
    """
    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json")):
        raise UserError(f"{folder} has neither tokenizer.json nor vocab.json", "the model is incomplete")
    check_files(folder)
    with _load_errors(folder):
        tokenizer = component.load_class().from_pretrained(folder, local_files_only=True)
        check_tokenizer(folder, tokenizer)
    return tokenizer


def weights_faults(component: Component, folder: Path, variant: str | None = None) -> list[str]:
    """Weights that are missing, left over or of another shape than config.json says; only headers are read.

    Raises:
        UserError: a header or the configuration is faulty, or asks for far more than the files hold.
    """
    check_files(folder)
    with _load_errors(folder), _no_progress_bars():
        return list(name_faults(*_described(component, folder, variant)))


def _described(
    component: Component, folder: Path, variant: str | None
) -> tuple[NetworkShapes, Mapping[str, TensorEntry]]:
    """The network that config.json describes, and the headers of its weights.

    Raises:
        UserError: config.json asks for more than the files hold.
    """
    assert component.stem is not None
    stored = stored_tensors(folder, component.stem, variant)
    network = described(component.load_class(), folder, len(stored))
    check_amount(folder, network, stored)
    return network, stored


def build_network(
    name: str,
    component: Component,
    settings: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    dtype: torch.dtype,
) -> Any:
    """A network with these weights, on the CPU, in evaluation mode; no weight is drawn at random.

    Args:
        name: of the component, for messages.
        settings: of the network's configuration.
        weights: by the names of diffusers or transformers, all of them and no other.

    Raises:
        UserError: naming a weight that is missing, left over or of another shape than the settings say.
    """
    with torch.device("meta"):
        network = _make(name, component, settings)
    wanted = network.state_dict()
    for key in sorted(wanted.keys() ^ weights.keys()):
        kind = "is missing" if key in wanted else "is left over"
        raise UserError(f"the {name}'s weight {key} {kind}", "the file is incomplete or of another structure")
    for key, tensor in wanted.items():
        if weights[key].shape != tensor.shape:
            shapes = f"{list(weights[key].shape)}, here it must be {list(tensor.shape)}"
            raise UserError(
                f"the {name}'s weight {key} has shape {shapes}", "the file is of another structure"
            )
    network.load_state_dict({key: weights[key].to(dtype) for key in wanted}, assign=True)
    _fill_position_ids(network)
    return network.eval().requires_grad_(False)


def _make(name: str, component: Component, settings: Mapping[str, Any]) -> nn.Module:
    cls = component.load_class()
    try:
        network: nn.Module = (
            cls(cls.config_class(**settings)) if component.library == "transformers" else cls(**settings)
        )
    except (ValueError, ZeroDivisionError, RuntimeError, TypeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"the {name} cannot be built ({reason})", "its widths fit no such network") from error
    return network


def _fill_position_ids(network: nn.Module) -> None:
    """Give the one buffer that is not a weight its values 0, 1, 2, ..."""
    for module in network.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.is_meta:
                assert name == "position_ids"
                module.register_buffer(name, torch.arange(buffer.shape[-1])[None], persistent=False)


LIBRARY_ERRORS = (
    OSError, SafetensorError, ValueError, LookupError, TypeError, RuntimeError, ArithmeticError, AttributeError,
    AssertionError, ImportError, MemoryError, StrictDataclassError,
)  # fmt: skip
"""What diffusers, transformers and torch raise for damaged files and configurations."""


@contextmanager
def _load_errors(folder: Path) -> Iterator[None]:
    """Turn what the libraries raise for damaged files into one line that names the folder."""
    try:
        yield
    except LIBRARY_ERRORS as error:
        if shortage := memory_fault(error):
            raise shortage from error
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{folder} cannot be loaded ({reason})", "restore its files") from error


def save_network(
    network: Any, folder: Path, dtype: torch.dtype, max_shard_size: str, variant: str | None = None
) -> None:
    """Write a diffusers or transformers network as safetensors, split into files of `max_shard_size`.

    Only one tensor at a time is copied.

    Args:
        variant: goes into the files' names, such as "fp16".

    Raises:
        UserError: a weight is too large for `dtype`, or the disk is full or not writable.
    """
    if hasattr(network, "save_config"):
        network.save_config(folder)
    else:  # transformers, whose own saving adds these two
        config = copy.deepcopy(network.config)
        config.architectures, config.dtype = [type(network).__name__], "float32"
        config.save_pretrained(folder)
    _clean_config(folder / "config.json")
    stem = "diffusion_pytorch_model" if hasattr(network, "save_config") else "model"
    _write_shards(_stored_weights(network), folder, stem, dtype, max_shard_size, variant)


def _write_shards(
    weights: Mapping[str, Tensor],
    folder: Path,
    stem: str,
    dtype: torch.dtype,
    max_shard_size: str,
    variant: str | None,
) -> None:
    """One file, or several with an index, named as diffusers and transformers name them."""
    from huggingface_hub import split_torch_state_dict_into_shards

    dotted = f".{variant}" if variant else ""
    shapes = {
        name: torch.empty_like(tensor, device="meta", dtype=dtype if tensor.is_floating_point() else None)
        for name, tensor in weights.items()
    }
    split = split_torch_state_dict_into_shards(
        shapes, filename_pattern=f"{stem}{dotted}{{suffix}}.safetensors", max_shard_size=max_shard_size
    )
    for file, names in split.filename_to_tensors.items():
        write_tensors(folder / file, {name: weights[name] for name in names}, {"format": "pt"}, dtype=dtype)
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": dict(sorted(split.tensor_to_filename.items()))}
        write_json(folder / f"{stem}.safetensors.index{dotted}.json", index)


def _cast(network: Any, dtype: torch.dtype) -> Any:
    """`network.to(dtype)` without the warning that diffusers issues."""
    return nn.Module.to(network, dtype)


def _clean_config(config_file: Path) -> None:
    """Remove the path that the network was loaded from, and write the same dtype for all components.

    transformers computes in the dtype of its config, diffusers in float32: a stock pipeline needs one for both.
    """
    config = read_json(config_file)
    config.pop("_name_or_path", None)
    write_json(config_file, config | ({"dtype": "float32"} if "dtype" in config else {}))


def _stored_weights(network: nn.Module) -> dict[str, Tensor]:
    """The weights by the names to store them under.

    transformers before 5 has `text_model.` before the names of a CLIPTextModel; later ones read both.
    """
    is_clip = type(network).__name__ == "CLIPTextModel" and not hasattr(network, "text_model")
    prefix = "text_model." if is_clip else ""
    return {prefix + name: tensor for name, tensor in network.state_dict().items()}


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    """Hide the libraries' own progress bars: the terminal belongs to the caller."""
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

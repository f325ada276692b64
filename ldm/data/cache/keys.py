"""Cache keys: hashes of everything that an entry depends on, and of nothing else."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

ENTRY_VERSION = 1
"""Increased when the same inputs would give a different entry, such as another order of channels."""

UNSTABLE_SETTINGS = frozenset({"transformers_version", "dtype", "torch_dtype", "architectures"})
"""Config values that do not affect a network's output; those that begin with `_` do not either."""


def entry_key(content_hash: str, transform_key: str, autoencoder_hash: str) -> str:
    """The key of an image's moments, 64 hex digits.

    Args:
        content_hash: SHA-256 of the encoded image's bytes.
        transform_key: of `ldm.data.transform`: size, crop, flip, background and `TRANSFORM_VERSION`.
        autoencoder_hash: `tensors_hash` of the autoencoder.
    """
    return _hash_of("moments", content_hash, transform_key, autoencoder_hash)


def prompt_key(text: str, text_encoder_hash: str) -> str:
    """The key of a caption's embeddings, 64 hex digits."""
    return _hash_of("prompt", text, text_encoder_hash)


def combined_hash(*parts: str | int) -> str:
    """A hash of several values, 64 hex digits; for a text encoder with its tokenizer, context and number of chunks."""
    return _hash_of("combined", *parts)


def tensors_hash(module: nn.Module) -> str:
    """A hash of a network: the names, dtypes, shapes and bytes of its state, and its config. 64 hex digits.

    It is the same on every device and in every memory format.
    """
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        if isinstance(value, Tensor):
            digest.update(json.dumps([name, str(value.dtype), list(value.shape)]).encode())
            digest.update(tensor_bytes(value))
        else:
            digest.update(json.dumps([name, repr(value)]).encode())
    for name, settings in _configs(module, ""):
        digest.update(json.dumps([name, settings], sort_keys=True, default=str).encode())
    return digest.hexdigest()


def tensor_bytes(tensor: Tensor) -> memoryview:
    """The bytes of a tensor of any dtype on any device, in row-major order."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    array: Any = flat.view(torch.uint8).numpy()
    return memoryview(array)


def _hash_of(*parts: str | int) -> str:
    """JSON separates the parts: ("a", "bc") and ("ab", "c") differ."""
    return hashlib.sha256(json.dumps([ENTRY_VERSION, *parts]).encode()).hexdigest()


def _configs(module: nn.Module, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The topmost configs of a module: those of networks inside our wrappers, not those of layers in a network."""
    config = getattr(module, "config", None)
    if config is None:
        for child_name, child in module.named_children():
            yield from _configs(child, f"{name}.{child_name}")
        return
    plain = config if isinstance(config, Mapping) else config.to_dict()
    kept = {k: v for k, v in plain.items() if not k.startswith("_") and k not in UNSTABLE_SETTINGS}
    yield name, kept

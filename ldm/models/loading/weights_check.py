"""Compare a component's weights with its configuration before any of them is loaded: shapes only, no memory.

A configuration may describe a larger network than the files hold, and the libraries would allocate all of it; an index
may name files in other folders. Both are refused here.
"""

import inspect
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ldm.errors import UserError
from ldm.io.json_files import MAX_MODEL_JSON_BYTES, parse_json, read_json
from ldm.io.safetensors_header import TensorEntry, read_header

SLACK = 2**20
"""How many numbers a configuration may ask for beyond those stored: computed buffers, and small mistakes, which have
their own messages."""

HINT = "config.json and the safetensors do not match"

FORMER_NAMES = {
    "text_model.": "",  # CLIPTextModel of transformers before 5
    ".query.": ".to_q.",  # the attention of an AutoencoderKL of diffusers before 0.14
    ".key.": ".to_k.",
    ".value.": ".to_v.",
    ".proj_attn.": ".to_out.0.",
}
"""Old parts of names that the libraries still read, and the current ones."""


def weights_files(folder: Path, stem: str, variant: str | None = None) -> list[Path]:
    """The safetensors of one variant in a component's folder, sorted by name; there may be other variants."""
    begin = re.escape(stem + (f".{variant}" if variant else ""))
    pattern = re.compile(begin + r"(-\d+-of-\d+)?\.safetensors")
    return sorted(path for path in folder.iterdir() if pattern.fullmatch(path.name))


def stored_tensors(folder: Path, stem: str, variant: str | None = None) -> dict[str, TensorEntry]:
    """The tensors in a component's weights' files, by name; only the headers are read.

    Raises:
        UserError: a header is damaged, or the index of the shards names other files than those beside it.
    """
    headers = {path.name: read_header(path).tensors for path in weights_files(folder, stem, variant)}
    index = folder / f"{stem}.safetensors.index{f'.{variant}' if variant else ''}.json"
    if index.is_file():
        _check_index(index, headers)
    return {name: entry for tensors in headers.values() for name, entry in tensors.items()}


def _check_index(index: Path, headers: Mapping[str, Mapping[str, TensorEntry]]) -> None:
    value = read_json(index, max_bytes=MAX_MODEL_JSON_BYTES)
    shards = value.get("weight_map") if isinstance(value, dict) else None
    if not isinstance(shards, dict):
        raise UserError(f"{index} has no weight_map", "restore the file")
    for name, file in shards.items():
        if not isinstance(file, str) or file not in headers:
            raise UserError(
                f"{index} names {str(file)[:100]!r}", "a shard must be beside it under its usual name"
            )
        if name not in headers[file]:
            raise UserError(f"{index}: {name!r} is not in {file}", "restore the files")


@dataclass(frozen=True)
class NetworkShapes:
    """The network that a config.json describes.

    Attributes:
        shapes: of its weights and stored buffers, by name.
        num_numbers: in all weights and buffers together.
    """

    shapes: Mapping[str, tuple[int, ...]]
    num_numbers: int


def described(cls: Any, folder: Path, num_stored: int) -> NetworkShapes:
    """The network that a component's config.json describes.

    Args:
        cls: a network of diffusers or transformers.
        num_stored: tensors in its files; a configuration with more layers is refused before it is built.

    Raises:
        UserError: config.json is missing or damaged, or asks for more layers.
        Exception: whatever the library raises for a configuration that is wrong in another way.
    """
    config = read_json(folder / "config.json", max_bytes=MAX_MODEL_JSON_BYTES)
    if not isinstance(config, dict):
        raise UserError(f"{folder / 'config.json'} does not hold a JSON object", "restore the file")
    _check_layers(folder, config, num_stored)
    return _shapes_of(cls, json.dumps(config))


@lru_cache(maxsize=64)
def _shapes_of(cls: Any, config_json: str) -> NetworkShapes:
    """Built on the meta device, without memory. Remembered, because it takes as long as half of loading the network."""
    config = parse_json(config_json)
    with torch.device("meta"):
        if hasattr(cls, "config_class"):  # transformers: one object with all settings
            network: nn.Module = cls(cls.config_class.from_dict(config))
        else:
            known = inspect.signature(cls.__init__).parameters
            network = cls(**{key: value for key, value in config.items() if key in known})
    everything = [*network.parameters(), *network.buffers()]
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    return NetworkShapes(shapes, sum(tensor.numel() for tensor in everything))


def _check_layers(folder: Path, config: Mapping[str, Any], num_stored: int) -> None:
    """Every layer has a tensor, so there cannot be more layers; the counts in a configuration multiply."""
    layers = 1
    for key, value in config.items():
        if key.endswith("block_types") and isinstance(value, list):
            layers = max(layers, len(value))
    for key, value in config.items():
        if "layers" in key or "depth" in key:
            layers *= max([1, *_counts(value)])
    if layers > max(num_stored, 1):
        raise UserError(
            f"{folder}: config.json asks for {layers:,} layers, and the safetensors hold {num_stored:,} weights",
            HINT,
        )


def _counts(value: Any) -> Iterator[int]:
    """The integers in a setting that may be a number, a list, or a list of lists."""
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, list):
            waiting += item
        elif type(item) is int:
            yield item


def check_amount(folder: Path, network: NetworkShapes, stored: Mapping[str, TensorEntry]) -> None:
    """Refuse a network that would need far more memory than its files hold.

    Raises:
        UserError: naming the folder and both numbers.
    """
    wanted = network.num_numbers
    held = sum(entry.num_numbers for entry in stored.values())
    if wanted > held + SLACK:
        raise UserError(
            f"{folder}: config.json asks for {wanted:,} numbers, and the safetensors hold {held:,}", HINT
        )


def name_faults(network: NetworkShapes, stored: Mapping[str, TensorEntry]) -> Iterator[str]:
    """Weights that are missing, left over or of another shape than the network's, as messages, by name."""
    wanted = network.shapes
    found = {name: name if name in wanted else _current_name(name) for name in stored}
    held = {today: stored[name] for name, today in found.items()}
    for name in sorted(wanted.keys() | held.keys()):
        if name.endswith("position_ids"):  # the numbers 0, 1, 2 ..., which older versions stored
            continue
        if name not in held:
            yield f"the weight {name!r} is missing"
        elif name not in wanted:
            yield f"the weight {name!r} is left over"
        elif wanted[name] != held[name].shape:
            yield f"the weight {name!r} is {list(held[name].shape)}, and config.json says {list(wanted[name])}"


def _current_name(name: str) -> str:
    for former, today in FORMER_NAMES.items():
        name = name.replace(former, today)
    return name

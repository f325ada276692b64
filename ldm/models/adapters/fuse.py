"""LoRA files on top of a model: added to its weights at loading, and named in the record of every image."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ldm.errors import UserError
from ldm.io.files import sha256_file
from ldm.models.adapters.lora import LoraWeights, apply_lora
from ldm.models.adapters.lora_files import lora_files, read_lora_file
from ldm.models.families.registry import lora_parts
from ldm.models.loading.folder import ADAPTER_WEIGHTS, PEFT_CONFIG, PEFT_FILE
from ldm.models.parts import ModelParts

FIXED_NAMES = (Path(ADAPTER_WEIGHTS[0]).stem, Path(PEFT_FILE).stem, "pipeline")
"""Files and folders with the same name for every LoRA, which is named after the folder above; so are `lora_parts`."""


@dataclass(frozen=True)
class UsedLora:
    """A LoRA in a model, as an image's record names it.

    Attributes:
        name: of the file or of its folder, without a path.
        sha256: of the file; of several files, over their hashes.
        weight: of the change; 1 is as trained.
    """

    name: str
    sha256: str
    weight: float


def apply_loras(parts: ModelParts, loras: Sequence[tuple[str | Path, float]]) -> tuple[UsedLora, ...]:
    """Add LoRAs to a model's weights, which stay plain weights. Their order makes no difference.

    Args:
        parts: in float32 where there is anything to add.
        loras: each a path as of `ldm.models.adapters.lora_files.read_lora_file`, and its weight.

    Raises:
        UserError: a file is not a LoRA or is of another model, or a weight is not finite.
    """
    networks, names = parts.lora_networks(), parts.family.lora
    used = [use_lora(path, weight) for path, weight in loras]
    order = sorted(range(len(used)), key=lambda i: (used[i].sha256, used[i].weight))
    read = [(read_lora_file(Path(loras[i][0]), networks, names), used[i].weight) for i in order]
    fuse_loras(networks, read)
    return tuple(used)


def use_lora(path: str | Path, weight: float = 1.0) -> UsedLora:
    """How a LoRA is named in the record of an image.

    Raises:
        UserError: there is none, or the weight is not finite.
    """
    if not math.isfinite(weight):
        raise UserError(f"the weight of {path} is {weight}", "it must be a finite number")
    return UsedLora(lora_name(Path(path)), lora_hash(Path(path)), float(weight))


def split_weight(text: str) -> tuple[Path, float | None]:
    """`FILE` or `FILE:WEIGHT`, as given to a command. In the name of an existing file, a colon is part of the name.

    Raises:
        UserError: the weight is not a finite number.
    """
    whole = Path(text).expanduser()
    path, colon, weight = text.rpartition(":")
    if whole.exists() or not colon:
        return whole, None
    try:
        value = float(weight)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f"the weight {weight!r} in {text!r} is not a finite number", "write FILE:0.8")
    return Path(path).expanduser(), value


def lora_name(path: Path) -> str:
    """A LoRA's name: that of its file, or of its folder where the file's is the same for every LoRA."""
    named, fixed = path.resolve(), (*FIXED_NAMES, *lora_parts())
    while named.stem in fixed and named.parent != named:
        named = named.parent
    return named.stem if named.suffix == ".safetensors" else named.name


def lora_hash(path: Path) -> str:
    """The SHA-256 of a LoRA's file; over the hashes of all files where there are several, configurations included."""
    found = lora_files(path)
    files = [*found, *(file.parent / PEFT_CONFIG for file in found if (file.parent / PEFT_CONFIG).is_file())]
    hashes = [sha256_file(file) for file in files]
    return hashes[0] if len(files) == 1 else hashlib.sha256("\n".join(hashes).encode()).hexdigest()


@torch.no_grad()
def fuse_loras(networks: Mapping[str, nn.Module], loras: Sequence[tuple[LoraWeights, float]]) -> None:
    """Add several LoRAs to networks, each with its weight: the sum of what each alone would change.

    For plain LoRAs, adding one after the other gives that sum. A DoRA sets the length of the weights that it finds, so
    each is applied to the original networks.

    Raises:
        UserError: a LoRA is of another network.
    """
    with_dora = any(config["use_dora"] for weights, _ in loras for config in weights.configs.values())
    if len(loras) == 1 or not with_dora:
        for weights, scale in loras:
            apply_lora(networks, weights, scale=scale)
        return
    changes: dict[tuple[str, str], Tensor] = {}
    for weights, scale in loras:
        before = _touched(networks, weights)
        apply_lora(networks, weights, scale=scale)
        for (part, name), weight in before.items():
            live = networks[part].get_parameter(name)
            changes[part, name] = changes.get((part, name), 0) + (live - weight)
            live.copy_(weight)
    for (part, name), change in changes.items():
        networks[part].get_parameter(name).add_(change)


def _touched(networks: Mapping[str, nn.Module], weights: LoraWeights) -> dict[tuple[str, str], Tensor]:
    """Copies of the weights and biases that a LoRA changes, by network and name."""
    names = {f"{name.partition('.lora_')[0]}.weight" for name in weights.tensors} | weights.changes.keys()
    found = sorted(name.partition(".")[::2] for name in names)
    return {(part, name): networks[part].get_parameter(name).clone() for part, name in found}

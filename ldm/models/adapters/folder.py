"""An adapter's folder: a LoRA, a new token or a ControlNet, stored apart from the base model that it is for.

adapter.json                        its kind, its base with the hash of the base's weights, and how it was trained
pytorch_lora_weights.safetensors    a LoRA in diffusers' format: peft's names, the configuration in the header
learned_embeds.safetensors          a textual inversion in diffusers' format, see `ldm.models.adapters.embedding`
config.json, diffusion_pytorch_model.safetensors   a ControlNet in the diffusers layout
ldm.json                            the defaults for sampling and the provenance, as in a complete model
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ldm.errors import UserError, unknown_name
from ldm.io.files import read_tensors, write_json, write_tensors
from ldm.io.folders import new_folder
from ldm.io.json_files import read_object
from ldm.models.adapters.embedding import Vectors, apply_embedding, tokens_in_file
from ldm.models.adapters.lora import LoraWeights, apply_lora
from ldm.models.adapters.lora_files import read_lora, write_lora_diffusers
from ldm.models.control.load_networks import load_controls
from ldm.models.identity import Identity, changed_parts, identity_of
from ldm.models.loading.components import save_network
from ldm.models.loading.folder import (
    ADAPTER,
    ADAPTER_FILES,
    Defaults,
    check_keys,
    is_adapter,
    weights_hash,
)
from ldm.models.loading.source import EMBEDDED, find_model
from ldm.models.parts import ModelParts

LORA_FILE, EMBEDDING_FILE = ADAPTER_FILES["lora"], ADAPTER_FILES["embedding"]
UNSPLIT = "1TB"
"""The weights of an adapter are one file."""


@dataclass(frozen=True)
class Base:
    """The model that an adapter is trained on.

    Attributes:
        given: the name, folder or Hub id as the user wrote it.
        folder: where it is now.
        weights_hash: its `ldm.models.loading.folder.weights_hash`.
        parts: its `Identity.base_parts`; empty if only the weights are known.
    """

    given: str
    folder: Path
    weights_hash: str
    parts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Adapter:
    """What `adapter.json` says.

    Attributes:
        kind: of `ADAPTER_FILES`.
        base: the base model as the user wrote it.
        scheduler_config: the noise schedule and prediction type of its training.
        settings: of the LoRA, the token or the ControlNet.
        base_parts: the base's `Identity.base_parts`; empty in a file of an older version.
    """

    kind: str
    base: str
    base_weights_hash: str
    scheduler_config: dict[str, Any]
    settings: dict[str, Any]
    base_parts: dict[str, str] = field(default_factory=dict)


def find_base(model: str | Path, parts: ModelParts | None = None) -> Base:
    """The model to train an adapter on, with the hashes by which the adapter will recognise it.

    Args:
        parts: the loaded model; without it, only the weights are recognised.

    Raises:
        UserError: there is no such model.
    """
    folder, _ = find_model(model)
    found = {} if parts is None else identity_of_model(parts, folder).base_parts
    return Base(str(model), folder, weights_hash(folder), found)


def identity_of_model(parts: ModelParts, place: Path) -> Identity:
    """The identity of a model that was loaded from a folder or file, which may be an adapter's folder.

    Raises:
        UserError: the adapter's base is not found or has changed.
    """
    base, adapters = adapter_chain(place)
    return identity_of(parts, base, [folder for folder, _ in adapters])


def save_adapter(
    folder: Path,
    adapter: Adapter,
    weights: LoraWeights | Mapping[str, Tensor] | nn.Module,
    defaults: Defaults,
    *,
    provenance: dict[str, Any] | None = None,
    replace: bool = False,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write an adapter's folder, complete or not at all.

    Args:
        weights: the LoRA, the contents of a token's file, or the ControlNet.
        provenance: written into `ldm.json`: where the adapter comes from.
        replace: overwrite an existing folder.
        dtype: that the weights of a LoRA are stored in.

    Raises:
        UserError: the folder exists, or the disk is full or not writable.
    """
    with new_folder(folder, replace=replace) as temporary:
        if isinstance(weights, LoraWeights):
            write_lora_diffusers(weights, temporary / LORA_FILE, dtype=dtype)
        elif isinstance(weights, nn.Module):
            save_network(weights, temporary, torch.float32, UNSPLIT)
        else:
            write_tensors(temporary / EMBEDDING_FILE, weights)
        write_json(temporary / ADAPTER, asdict(adapter))
        write_json(
            temporary / "ldm.json", {"defaults": defaults.model_defaults(), "provenance": provenance or {}}
        )


def adapter_chain(folder: Path) -> tuple[Path, list[tuple[Path, Adapter]]]:
    """The complete model below an adapter's folder, and the adapters to apply to it in this order.

    Raises:
        UserError: a base is not found or has other weights than in training, or a folder is its own base.
    """
    chain: list[tuple[Path, Adapter]] = []
    while is_adapter(folder):
        adapter = read_adapter(folder)
        base = _base_folder(folder, adapter)
        chain.insert(0, (folder, adapter))
        if base.resolve() in [known.resolve() for known, _ in chain]:
            raise UserError(f"{folder / ADAPTER}: base {adapter.base!r} is itself", "name the base model")
        _check_hash(folder, adapter, base)
        folder = base
    return folder, chain


def read_adapter(folder: Path) -> Adapter:
    """An adapter's `adapter.json`.

    Raises:
        UserError: it is missing or damaged, or of an unknown kind.
    """
    path = folder / ADAPTER
    found = read_object(path)
    check_keys(path, found)
    kinds = {
        "kind": str, "base": str, "base_weights_hash": str, "scheduler_config": dict, "settings": dict,
        "base_parts": dict,
    }  # fmt: skip
    for key in found:
        if key not in kinds:
            raise unknown_name(f"key in {path}", key, kinds)
    for key, kind in kinds.items():
        if not isinstance(found.get(key, {} if key == "base_parts" else None), kind):
            raise UserError(f"{path}: {key} is {found.get(key)!r}", f"it must be of type {kind.__name__}")
    if found["kind"] not in ADAPTER_FILES:
        raise unknown_name(f"kind in {path}", found["kind"], ADAPTER_FILES)
    return Adapter(**found)


def apply_adapters(
    parts: ModelParts,
    base: Path,
    adapters: Sequence[tuple[Path, Adapter]],
    *,
    substituted: Collection[str] = (),
) -> None:
    """Apply the adapters of `adapter_chain` to the model loaded from `base`, in this order.

    Args:
        substituted: components of `parts` that the user chose in place of the base's.

    Raises:
        UserError: the base of one is not the model that it was trained on; or as `apply_adapter`.
    """
    for number, (folder, adapter) in enumerate(adapters):
        below = [each for each, _ in adapters[:number]]
        check_base(folder, adapter, parts, base, below, substituted=substituted)
        apply_adapter(folder, adapter, parts)


def check_base(
    folder: Path,
    adapter: Adapter,
    parts: ModelParts,
    base: Path,
    below: Sequence[Path] = (),
    *,
    substituted: Collection[str] = (),
) -> None:
    """Refuse a base whose weights are those of the training, but not its configurations or tokenizer.

    Args:
        parts: the model loaded from `base`, with the adapters in the folders `below` applied.
        substituted: components that may differ.

    Raises:
        UserError: naming the components that differ.
    """
    if not adapter.base_parts:
        return
    found = identity_of(parts, base, below).base_parts
    changed = [name for name in changed_parts(adapter.base_parts, found) if name not in substituted]
    if changed:
        raise UserError(
            f"{folder}: its base {adapter.base!r} has the weights it had in training, but not the same "
            f"{', '.join(changed)}",
            "restore the configurations of that base, or train the adapter again on this one",
        )


def apply_adapter(folder: Path, adapter: Adapter, parts: ModelParts) -> None:
    """Change a model as the adapter in `folder` says; its networks are plain networks afterwards.

    A ControlNet changes none of them: it is added to `ModelParts.controls`.

    Raises:
        UserError: the adapter's files are missing, damaged or of another model.
    """
    parts.scheduler_config = adapter.scheduler_config
    if adapter.kind == "lora":
        apply_lora(parts.lora_networks(), read_lora(folder / LORA_FILE))
        return
    if adapter.kind == "controlnet":
        kind = str(adapter.settings.get("kind"))
        parts.controls[kind] = load_controls({kind: folder}, parts)[kind]
        return
    found: dict[str, Vectors] = tokens_in_file(
        read_tensors(folder / EMBEDDING_FILE), str(adapter.settings.get("token"))
    )
    for token, vectors in found.items():
        apply_embedding(parts.text_encoder, token, vectors)


def _base_folder(folder: Path, adapter: Adapter) -> Path:
    """Where the base is. A relative path is first looked up from every folder above the adapter: trees get moved."""
    try:
        if adapter.base not in EMBEDDED and not Path(adapter.base).is_absolute():
            for above in folder.resolve().parents:
                if (above / adapter.base).exists():
                    return find_model(above / adapter.base)[0]
        return find_model(adapter.base)[0]
    except UserError as error:
        raise UserError(
            f"{folder} needs its base model {adapter.base!r}, and {error.what}", error.hint
        ) from error


def _check_hash(folder: Path, adapter: Adapter, base: Path) -> None:
    found = weights_hash(base)
    if found != adapter.base_weights_hash:
        raise UserError(
            f"{folder}: its base {adapter.base!r} has other weights now ({found[:12]}) than in training "
            f"({adapter.base_weights_hash[:12]})",
            "restore that base, or train the adapter again on this one",
        )

"""What a run stands on besides its settings and data: the parts of its model that no checkpoint holds.

The base model, the autoencoder and text encoder of `parts:`, tokenizers, the noise schedule. They are read from files
at every start, so each checkpoint records a hash of each, and a resumed run is refused if one has changed.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ldm.data.cache.keys import tensor_bytes
from ldm.errors import UserError
from ldm.io.json_files import MAX_MODEL_JSON_BYTES, parse_json
from ldm.io.opening import read_bytes
from ldm.models.adapters.fuse import lora_hash
from ldm.models.adapters.lora import lora_parameters, lora_weights
from ldm.models.identity import changed_parts, network_settings, scheduler_settings, tokenizer_contents
from ldm.models.parts import ModelParts

from ..loop.denoiser_loss import DenoiserLoss
from ..loop.distillation import Distillation
from ..settings.denoiser import DenoiserSettings
from .checkpoints import MODEL_FILE, checkpoints

HELD_MODEL_VERSION = 1
"""Increased when the hash of an unchanged model changes."""


@dataclass(frozen=True)
class HeldModel:
    """Hashes of a run's model, by component.

    Attributes:
        frozen: what the run needs and no checkpoint holds; if it changes, it is another run.
        started_from: what only the first step was computed from, and the defaults of the result. If it changes, the
            run is the same.
    """

    frozen: Mapping[str, str]
    started_from: Mapping[str, str] = field(default_factory=dict)

    @property
    def encoded(self) -> bytes:
        """The hashes as JSON."""
        tree = {"version": HELD_MODEL_VERSION, "frozen": self.frozen, "started_from": self.started_from}
        return (json.dumps(tree, indent=2) + "\n").encode()


def decode_held_model(data: bytes) -> HeldModel | None:
    """Read what `encoded` returned; None if the bytes are damaged or of another version."""
    try:
        tree = parse_json(data)
        found = HeldModel(dict(tree["frozen"]), dict(tree["started_from"]))
        return found if tree["version"] == HELD_MODEL_VERSION else None
    except (ValueError, TypeError, KeyError, RecursionError):
        return None


def held_model(
    settings: DenoiserSettings,
    parts: ModelParts,
    teacher: ModelParts | None = None,
    distillation: Distillation | None = None,
) -> HeldModel:
    """The hashes of a run's model at its start.

    Args:
        parts: after `choose_trained`, before a checkpoint is loaded.
        teacher: the model of `reflow`.
        distillation: with a teacher of its own, which is `base` as the run found it.
    """
    frozen = {
        name: _hash_of([network_settings(one), tensor_hashes(_tensors(one, trained=False))])
        for name, one in parts.networks().items()
    }
    components = parts.components()
    frozen |= {name: _hash_of(tokenizer_contents(components[name])) for name in parts.family.tokenizers}
    frozen["scheduler"] = _hash_of(scheduler_settings(parts.scheduler_config))
    if parts.low_resolution is not None:
        frozen["low_res_scheduler"] = _hash_of(parts.low_resolution.model_dump())
    if parts.settings:
        frozen["settings"] = _hash_of(parts.settings)
    if any(lora_parameters(network) for network in parts.lora_networks().values()):
        frozen["lora"] = _hash_of(_without_empty(lora_weights(parts.lora_networks()).configs))
    if teacher is not None:
        networks = teacher.networks().values()
        told = [[network_settings(one), tensor_hashes(one.state_dict())] for one in networks]
        frozen["reflow.model"] = _hash_of([told, scheduler_settings(teacher.scheduler_config)])
    if distillation is not None and distillation.teacher is not None:
        weights = [] if settings.is_adapter else tensor_hashes(distillation.teacher.unet.state_dict())
        frozen["teacher"] = _hash_of([list(distillation.scales), weights])
    return HeldModel(frozen, dict(_started_from(settings, parts)))


def held_model_of(settings: DenoiserSettings, loss: DenoiserLoss) -> HeldModel:
    """The hashes of what a loss stands on, at the start of a run."""
    return held_model(settings, loss.parts, loss.teacher.parts if loss.teacher else None, loss.distillation)


def _started_from(settings: DenoiserSettings, parts: ModelParts) -> Iterator[tuple[str, str]]:
    """New weights are drawn from the seed, so only those that were read from files are named."""
    if settings.base is not None:
        yield "defaults", _hash_of(parts.defaults.model_defaults())
    if settings.lora.start is not None:
        yield "lora.start", lora_hash(settings.lora.start)
    if settings.base is not None and not settings.is_adapter:
        for name, network in parts.networks().items():
            if trained := _tensors(network, trained=True):
                yield f"initial weights of {name}", _hash_of(tensor_hashes(trained))


def _tensors(network: nn.Module, *, trained: bool) -> dict[str, Tensor]:
    """The parameters and stored buffers of a network that are trained, or those that are not."""
    own = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    tensors = network.state_dict(keep_vars=True)
    return {name: tensor for name, tensor in tensors.items() if (name in own) is trained}


def tensor_hashes(tensors: Mapping[str, Tensor]) -> list[str]:
    """The SHA-256 of each tensor's bytes, with its dtype and shape, in order; several are computed at once.

    Names are left out: later versions of the libraries rename layers, and keep their order.
    """
    with ThreadPoolExecutor() as pool:
        return list(pool.map(_tensor_hash, tensors.values()))


def _tensor_hash(tensor: Tensor) -> str:
    digest = hashlib.sha256(json.dumps([str(tensor.dtype), list(tensor.shape)]).encode())
    digest.update(tensor_bytes(tensor))
    return digest.hexdigest()


def check_same_model(run_dir: Path, model: HeldModel) -> list[str]:
    """Check that a run was trained with `model` so far; returns a line for each change that makes no difference.

    All checkpoints of a run record the same, so damaged ones are skipped.

    Raises:
        UserError: a part has changed that no checkpoint holds, which would make it another run.
    """
    found = checkpoints(run_dir / "checkpoints")
    before = next((known for each in reversed(found) if (known := _trained_with(each))), None)
    if before is None:
        said = "the checkpoints do not record the model they were trained with, so it was not compared"
        return [said] if found else []
    _check_frozen(f"{run_dir} was started", before, model)
    changed = changed_parts(before.started_from, model.started_from)
    consequence = "weights and optimizer come from the checkpoint, so training goes on unchanged"
    return [f"{name} changed since {run_dir} was started; {consequence}" for name in changed]


def check_model_of(checkpoint: Path, model: HeldModel) -> None:
    """Refuse to combine the weights of a checkpoint with other frozen parts than they were trained with.

    Raises:
        UserError: naming the parts that have changed.
    """
    if before := _trained_with(checkpoint):
        _check_frozen(f"{checkpoint} was written", before, model)


def _check_frozen(since: str, before: HeldModel, now: HeldModel) -> None:
    if changed := changed_parts(before.frozen, now.frozen):
        raise UserError(
            f"the model has changed since {since}: {', '.join(changed)}",
            "restore the old files, or use `ldm train CONFIG --fork NEW_DIR` for a new run from its weights",
        )


def _trained_with(checkpoint: Path) -> HeldModel | None:
    try:
        return decode_held_model(read_bytes(checkpoint / MODEL_FILE, MAX_MODEL_JSON_BYTES))
    except OSError:  # damaged, or from an older version
        return None


def _without_empty(configs: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    return {
        part: {k: v for k, v in config.items() if v not in (None, {}, [])} for part, config in configs.items()
    }


def _hash_of(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()

"""Checkpoints: weights, optimizer, average and step, as safetensors and JSON; written whole, verified, then rotated."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ldm.errors import UserError
from ldm.files import (
    manifest_fault,
    new_folder,
    read_json,
    read_tensors,
    write_json,
    write_manifest,
    write_tensors,
)

from .optim import WeightAverage


@dataclass
class TrainState:
    """All that a run needs to go on. There is no random state: every draw is a function of the step."""

    task: nn.Module
    optimizer: torch.optim.Optimizer
    average: WeightAverage
    step: int = 0


def save_checkpoint(state: TrainState, folder: Path, keep: int) -> Path:
    """Write `folder/step-NNNNNN`, verify it, and only then remove all but the newest `keep`.

    Raises:
        UserError: the disk is full, or the weights are no longer finite (nothing is written then).
    """
    weights = _trained(state.task)
    _check_finite(weights, state.step)
    dest = folder / f"step-{state.step:06d}"
    with new_folder(dest, replace=True) as temporary:
        write_tensors(temporary / "weights.safetensors", weights)
        write_tensors(temporary / "average.safetensors", state.average.average)
        write_tensors(temporary / "optimizer.safetensors", _optimizer_tensors(state))
        write_json(temporary / "state.json", {"step": state.step})
        write_manifest(temporary)
    fault = manifest_fault(dest)
    if fault:
        raise UserError(f"the checkpoint just written is not whole: {fault}", "check the disk")
    for old in checkpoints(folder)[:-keep]:
        shutil.rmtree(old)
    return dest


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoint folders, oldest first."""
    return sorted(p for p in folder.glob("step-*") if p.is_dir())


def newest_whole(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint that verifies, and what is wrong with each newer one.

    Raises:
        UserError: there are checkpoints and none of them is whole; a fresh start would hide the loss.
    """
    faults: list[str] = []
    found = checkpoints(folder)
    for checkpoint in reversed(found):
        fault = manifest_fault(checkpoint)
        if fault is None:
            return checkpoint, faults
        faults.append(fault)
    if found:
        raise UserError(
            f"no checkpoint is whole: {faults[0]}", f"restore it, or remove {folder} to start afresh"
        )
    return None, faults


def load_checkpoint(state: TrainState, checkpoint: Path) -> None:
    """Bring `state` to where a checkpoint left it.

    Raises:
        UserError: a file is missing or unreadable, or the checkpoint is of another network.
    """
    weights = read_tensors(checkpoint / "weights.safetensors")
    live = _trained(state.task)
    if {n: t.shape for n, t in weights.items()} != {n: t.shape for n, t in live.items()}:
        raise UserError(f"{checkpoint} holds another network", "use another run_dir for another model")
    with torch.no_grad():
        for name, tensor in weights.items():
            live[name].copy_(tensor)
    state.average.load(read_tensors(checkpoint / "average.safetensors"))
    _load_optimizer(state, read_tensors(checkpoint / "optimizer.safetensors"))
    state.step = int(read_json(checkpoint / "state.json")["step"])


def _trained(task: nn.Module) -> dict[str, Tensor]:
    return {name: p for name, p in task.named_parameters() if p.requires_grad}


def _check_finite(weights: dict[str, Tensor], step: int) -> None:
    for name, tensor in weights.items():
        if not torch.isfinite(tensor).all():
            raise UserError(
                f"the weights are no longer finite at step {step} ({name})",
                "rerun from the last checkpoint with a lower optim.learning_rate",
            )


def _optimizer_tensors(state: TrainState) -> dict[str, Tensor]:
    names: dict[Tensor, str] = {p: name for name, p in state.task.named_parameters()}
    return {
        f"{names[parameter]}/{key}": value if isinstance(value, Tensor) else torch.tensor(value)
        for parameter, slots in state.optimizer.state.items()
        for key, value in slots.items()
    }


def _load_optimizer(state: TrainState, tensors: dict[str, Tensor]) -> None:
    parameters = dict(state.task.named_parameters())
    slots: dict[str, dict[str, Any]] = {}
    for path, tensor in tensors.items():
        name, _, key = path.rpartition("/")
        slots.setdefault(name, {})[key] = tensor
    for name, values in slots.items():
        parameter = parameters[name]
        # AdamW's fused kernel wants its step counter on the parameter's device as well
        state.optimizer.state[parameter] = {key: value.to(parameter.device) for key, value in values.items()}

"""Checkpoints: safetensors and JSON, written atomically, verified, and only then rotated."""

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, FiniteFloat, NonNegativeInt
from torch import Tensor, nn

from ldm.data.fingerprint import decode_fingerprint
from ldm.errors import UserError
from ldm.io.files import (
    MANIFEST,
    ManifestEntry,
    check_free_space,
    manifest_fault,
    read_tensors,
    write_bytes,
    write_json,
    write_manifest,
    write_tensors,
)
from ldm.io.folders import new_folder
from ldm.io.json_files import read_json
from ldm.io.opening import MAX_TEXT_BYTES, read_bytes
from ldm.io.ownership import remove_written
from ldm.io.safetensors_header import read_header

from ..loop.prodigy import estimate_of, load_estimate
from ..loop.sharding import assign, gathered, shard_like
from ..loop.small_adamw import SmallAdamW
from ..loop.state import HasNumbers, MetricWindow, TrainState, trained_weights

NAME = re.compile(r"step-(\d+)")
DATA_FILE = "data.json"
"""In a checkpoint, the fingerprint of the training data; absent if the data is a stream."""
MODEL_FILE = "model.json"
"""In a checkpoint, the hashes of the parts of the model that it does not hold; see `train.run.held_model`."""
SMALL_FILES_BYTES = 2**20
"""Room for the files of a checkpoint other than its tensors: names, state and manifest."""


# Folders named after steps


def step_of(checkpoint: Path) -> int:
    """The optimizer step that a checkpoint folder is named after."""
    match = NAME.fullmatch(checkpoint.name)
    assert match
    return int(match[1])


def checkpoints(folder: Path) -> list[Path]:
    """The folders of steps in `folder`, such as checkpoints or snapshots, oldest first."""
    return sorted((p for p in folder.glob("step-*") if NAME.fullmatch(p.name) and p.is_dir()), key=step_of)


def newest_whole(
    folder: Path, fault_of: Callable[[Path], str | None] = manifest_fault
) -> tuple[Path | None, dict[Path, str]]:
    """The newest checkpoint that verifies, and what is wrong with each newer one.

    Args:
        fault_of: what is wrong with a checkpoint, or None; by default, only its files are compared with its manifest.

    Raises:
        UserError: there are checkpoints but all are damaged; a fresh start would hide the loss.
    """
    faults: dict[Path, str] = {}
    found = checkpoints(folder)
    for checkpoint in reversed(found):
        fault = fault_of(checkpoint)
        if fault is None:
            return checkpoint, faults
        faults[checkpoint] = fault
    if found:
        raise UserError(
            f"all checkpoints are damaged: {faults[found[-1]]}",
            f"restore one, or remove {folder} to start from scratch",
        )
    return None, faults


def remove_old(newest: Path, keep_last: int, keep_every: int | None, damaged: Collection[Path] = ()) -> None:
    """Remove the checkpoints that are no longer needed now that `newest` is verified.

    The newest `keep_last` are kept, and those at multiples of `keep_every`. Damaged ones are removed, and those of
    later steps, because the run went back to an earlier one.
    """
    step = step_of(newest)
    found = checkpoints(newest.parent)
    reached = [c for c in found if c == newest or (step_of(c) < step and c not in damaged)]
    kept = {*reached[-keep_last:], *(c for c in reached if keep_every and step_of(c) % keep_every == 0)}
    for checkpoint in found:
        if checkpoint not in kept:
            remove_written(checkpoint)


def remove_after(folder: Path, step: int) -> list[Path]:
    """Remove and return the folders of steps after `step`, which the resumed run will repeat."""
    later = [each for each in checkpoints(folder) if step_of(each) > step]
    for each in later:
        remove_written(each)
    return later


def origin_of(checkpoint: Path) -> dict[str, str]:
    """Hashes that a model made of a checkpoint keeps: of the averaged weights, and of the training data if known.

    See `ldm.provenance.lineage`.
    """
    entry = read_json(checkpoint / MANIFEST, dict[str, ManifestEntry]).get("average.safetensors", {})
    path = checkpoint / DATA_FILE
    data = decode_fingerprint(read_bytes(path, MAX_TEXT_BYTES)) if path.is_file() else None
    found = {"checkpoint_hash": str(entry["sha256"])} if "sha256" in entry else {}
    return found | ({"data_hash": data.hash} if data else {})


# Saving


def save_checkpoint(
    state: TrainState,
    folder: Path,
    keep_last: int,
    keep_every: int | None = None,
    damaged: Collection[Path] = (),
    writes: bool = True,
) -> Path:
    """Write `folder/step-NNNNNN`, verify it, and only then remove older and damaged ones.

    Args:
        writes: whether this process writes; if the state is sharded, every process must call this.

    Raises:
        UserError: the disk is full, the new checkpoint does not verify, or the weights are no longer finite. The last
            good checkpoint is kept, and the error names it.
    """
    dest = folder / f"step-{state.step:06d}"
    tensors = {name: gathered(group, keep=writes) for name, group in checkpoint_tensors(state).items()}
    if not writes:
        return dest
    with _naming_the_last_good(folder):
        for group in (tensors["weights"], tensors["average"]):
            _check_finite(group, state.step)
        num_bytes = sum(t.nbytes for group in tensors.values() for t in group.values())
        data = state.data.encoded if state.data else b""
        check_free_space(folder, num_bytes + len(data) + SMALL_FILES_BYTES)
        with new_folder(dest, replace=True) as temporary:
            for name, group in tensors.items():
                write_tensors(temporary / f"{name}.safetensors", group)
            write_json(temporary / "state.json", _numbers(state))
            if data:
                write_bytes(temporary / DATA_FILE, data)
            if state.model:
                write_bytes(temporary / MODEL_FILE, state.model)
            write_manifest(temporary)
        fault = manifest_fault(dest)
        if fault:
            raise UserError(f"the checkpoint just written is damaged: {fault}", "check the disk")
    remove_old(dest, keep_last, keep_every, damaged)
    return dest


def checkpoint_tensors(state: TrainState) -> dict[str, dict[str, Tensor]]:
    """The tensors of a checkpoint by file and name; not copies, and shards if the state is sharded."""
    return {
        "weights": trained_weights(state.module),
        "average": state.average.tensors(),
        "optimizer": _optimizer_tensors(state),
    }


@contextmanager
def _naming_the_last_good(folder: Path) -> Iterator[None]:
    """Add to a UserError which checkpoint is still good."""
    try:
        yield
    except UserError as error:
        try:
            good, _ = newest_whole(folder)
        except UserError:
            good = None
        kept = f"the last good checkpoint is {good}" if good else "there is no checkpoint yet"
        raise UserError(error.what, f"{error.hint}; {kept}") from error


def _check_finite(tensors: dict[str, Tensor], step: int) -> None:
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise UserError(
                f"the weights are no longer finite at step {step} ({name})",
                "lower optim.learning_rate and continue from the weights with `ldm train CONFIG --fork NEW_DIR`",
            )


def _numbers(state: TrainState) -> dict[str, Any]:
    numbers: dict[str, Any] = {"step": state.step, "num_bad_steps": state.num_bad_steps}
    numbers["window"] = state.window.numbers()
    numbers["without_moments"] = sorted(trained_weights(state.module).keys() - _with_moments(state))
    numbers["elapsed_sec"] = round(state.elapsed_sec, 1)
    if state.history:
        numbers["history"] = state.history
    if isinstance(state.module, HasNumbers) and (own := state.module.numbers()):
        numbers["module"] = own
    if estimate := estimate_of(state.optimizer):
        numbers["optimizer"] = estimate
    if state.best_scores:
        numbers["best_scores"] = state.best_scores
    if state.stream:
        numbers["stream"] = state.stream
    return numbers if state.scaler is None else {**numbers, "scaler": state.scaler.state_dict()}


def _with_moments(state: TrainState) -> set[str]:
    """The weights that the optimizer has moved; a weight that had no gradient so far has no moments."""
    return {
        name
        for name, parameter in trained_weights(state.module).items()
        if state.optimizer.state.get(parameter)
    }


def _optimizer_tensors(state: TrainState) -> dict[str, Tensor]:
    names: dict[Tensor, str] = {p: name for name, p in state.module.named_parameters()}
    return {
        f"{names[parameter]}/{key}": value if isinstance(value, Tensor) else torch.tensor(value)
        for parameter, slots in state.optimizer.state.items()
        for key, value in slots.items()
    }


# Loading


class CheckpointNumbers(BaseModel):
    """A checkpoint's state.json.

    Attributes:
        without_moments: the trained weights that the optimizer had not moved yet; None in older versions.
        module: what the module's `numbers` returned.
        optimizer: what `estimate_of` returned.
    """

    step: NonNegativeInt
    num_bad_steps: NonNegativeInt = 0
    window: dict[str, float] = {}
    stream: dict[str, Any] = {}
    scaler: dict[str, Any] | None = None
    without_moments: list[str] | None = None
    elapsed_sec: float = 0.0
    history: dict[str, Any] = {}
    module: dict[str, Any] = {}
    optimizer: dict[str, FiniteFloat] = {}
    best_scores: dict[str, dict[str, Any]] = {}


def read_numbers(checkpoint: Path) -> CheckpointNumbers:
    """A checkpoint's state.json.

    Raises:
        UserError: it is missing or damaged, or of another step than the folder's name says.
    """
    path = checkpoint / "state.json"
    found: CheckpointNumbers = read_json(path, CheckpointNumbers)
    if NAME.fullmatch(checkpoint.name) and found.step != step_of(checkpoint):
        raise UserError(f"{path} is of step {found.step}", "restore the file")
    return found


def checkpoint_fault(state: TrainState, checkpoint: Path) -> str | None:
    """What differs between a checkpoint and its manifest, or else `contents_fault`."""
    return manifest_fault(checkpoint) or contents_fault(state, checkpoint)


def contents_fault(state: TrainState, checkpoint: Path) -> str | None:
    """What a checkpoint lacks to restore `state`, in one line, or None: names and shapes of its tensors, its numbers.

    A manifest may have been written for files that lack something. For the weights of another network this is None:
    that is no damage, and loading says so.
    """
    try:
        weights = trained_weights(state.module)
        if _shapes(checkpoint / "weights.safetensors") != {n: tuple(t.shape) for n, t in weights.items()}:
            return None
        numbers = read_numbers(checkpoint)
        average = _shapes(checkpoint / "average.safetensors")
        moments = _shapes(checkpoint / "optimizer.safetensors")
    except UserError as error:
        return error.what
    wanted = {name: tuple(tensor.shape) for name, tensor in state.average.tensors().items()}
    for name in sorted(wanted.keys() | average.keys()):
        if average.get(name) != wanted.get(name):
            shapes = f"{_shown(average, name)}, not {_shown(wanted, name)}"
            return f"{checkpoint / 'average.safetensors'}: {name} is {shapes}"
    fault = _moments_fault(state, moments, numbers.without_moments)
    return f"{checkpoint / 'optimizer.safetensors'}: {fault}" if fault else None


def _moments_fault(
    state: TrainState, stored: Mapping[str, tuple[int, ...]], without: Sequence[str] | None
) -> str | None:
    """What the optimizer's part lacks.

    Args:
        stored: the shapes of its tensors, by `WEIGHT/SLOT`.
        without: weights that need not be in it; None if the checkpoint does not say.
    """
    weights = trained_weights(state.module)
    slots: dict[str, dict[str, tuple[int, ...]]] = {}
    for path, shape in stored.items():
        name, _, key = path.rpartition("/")
        slots.setdefault(name, {})[key] = shape
    if unknown := sorted(slots.keys() - weights.keys()):
        return f"{unknown[0]} is not a trained weight"
    absent = sorted(weights.keys() - slots.keys() - set(without or ()))
    if absent and (without is not None or not slots):
        return f"the moments of {absent[0]} are missing"
    if not isinstance(state.optimizer, torch.optim.AdamW | SmallAdamW):
        return None
    for name, found in slots.items():
        wanted = _slot_shapes(state.optimizer, weights[name])
        for key in sorted(wanted.keys() | found.keys()):
            if found.get(key) != wanted.get(key):
                return f"{name}/{key} is {_shown(found, key)}, not {_shown(wanted, key)}"
    return None


def _slot_shapes(optimizer: torch.optim.AdamW | SmallAdamW, weight: Tensor) -> dict[str, tuple[int, ...]]:
    """The shapes of what an optimizer keeps of a weight, by name."""
    if isinstance(optimizer, SmallAdamW):
        return optimizer.slot_shapes(weight)
    shape = tuple(weight.shape)
    return {"exp_avg": shape, "exp_avg_sq": shape, "step": ()}


def _shapes(path: Path) -> dict[str, tuple[int, ...]]:
    return {name: entry.shape for name, entry in read_header(path).tensors.items()}


def _shown(shapes: Mapping[str, tuple[int, ...]], name: str) -> str:
    return str(list(shapes[name])) if name in shapes else "missing"


def load_module_numbers(module: nn.Module, checkpoint: Path) -> CheckpointNumbers:
    """Restore what a module keeps besides its weights; returns the checkpoint's numbers."""
    numbers = read_numbers(checkpoint)
    if numbers.module and isinstance(module, HasNumbers):
        module.load_numbers(numbers.module)
    return numbers


def load_checkpoint(state: TrainState, checkpoint: Path) -> None:
    """Restore `state` from a checkpoint.

    Raises:
        UserError: a file is missing or unreadable, or the checkpoint is of another network.
    """
    load_weights(state.module, checkpoint)
    if fault := contents_fault(state, checkpoint):
        raise UserError(fault, "choose another checkpoint")
    state.average.load(read_tensors(checkpoint / "average.safetensors"))
    _load_optimizer(state, read_tensors(checkpoint / "optimizer.safetensors"))
    numbers = load_module_numbers(state.module, checkpoint)
    load_estimate(state.optimizer, numbers.optimizer)
    state.step, state.num_bad_steps = numbers.step, numbers.num_bad_steps
    device = next(state.module.parameters()).device
    state.window = MetricWindow.from_numbers(numbers.window, device)
    state.stream, state.history, state.elapsed_sec = numbers.stream, numbers.history, numbers.elapsed_sec
    state.best_scores = numbers.best_scores
    if state.scaler is not None and numbers.scaler is not None:
        state.scaler.load_state_dict(numbers.scaler)


def load_weights(module: nn.Module, checkpoint: Path) -> None:
    """Load the trained weights of a checkpoint into `module`.

    Raises:
        UserError: the file is missing or unreadable, or holds the weights of another network.
    """
    assign_weights(module, read_tensors(checkpoint / "weights.safetensors"), checkpoint)


@torch.no_grad()
def assign_weights(module: nn.Module, weights: dict[str, Tensor], checkpoint: Path) -> None:
    """Copy trained weights, read from a checkpoint, into `module` by their names.

    Raises:
        UserError: they are the weights of another network.
    """
    live = trained_weights(module)
    _check_same(weights, live, checkpoint)
    for name, tensor in weights.items():
        assign(live[name], tensor)


def _check_same(stored: dict[str, Tensor], live: dict[str, Tensor], checkpoint: Path) -> None:
    if {n: t.shape for n, t in stored.items()} != {n: t.shape for n, t in live.items()}:
        raise UserError(f"{checkpoint} holds another network", "use another run_dir for another model")


def _load_optimizer(state: TrainState, tensors: dict[str, Tensor]) -> None:
    parameters = dict(state.module.named_parameters())
    slots: dict[str, dict[str, Any]] = {}
    for path, tensor in tensors.items():
        name, _, key = path.rpartition("/")
        slots.setdefault(name, {})[key] = tensor
    for name, values in slots.items():
        parameter = parameters[name]
        state.optimizer.state[parameter] = {key: _slot(value, parameter) for key, value in values.items()}


def _slot(value: Tensor, parameter: Tensor) -> Tensor:
    """A moment or the step counter as AdamW's fused kernel needs it: on the parameter's device, and a moment in the
    parameter's memory layout, because the kernel walks through both in the order of their bytes."""
    return shard_like(parameter, value) if value.shape == parameter.shape else value.to(parameter.device)

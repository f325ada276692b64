"""What a run needs to go on, as a checkpoint: safetensors and JSON, written whole, verified, then rotated."""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ldm.data.fingerprint import Fingerprint
from ldm.errors import UserError
from ldm.io.disk import check_free_space
from ldm.io.files import (
    manifest_fault,
    new_folder,
    read_json,
    read_tensors,
    write_bytes,
    write_json,
    write_manifest,
    write_tensors,
)

from ..loop.averages import WeightAverages
from ..loop.sharding import assign, cut_like, gathered, is_sharded, reshard, unshard
from .checkpoints import DATA_FILE, newest_whole, remove_old
from .metric_window import MetricWindow

SMALL_FILES_BYTES = 2**20
"""Room for what a checkpoint holds beside its tensors: names, state and manifest."""


@dataclass
class TrainState:
    """All that a run needs to go on. There is no random state: every draw is a function of the step.

    Attributes:
        step: optimizer steps done, the skipped ones among them.
        num_bad_steps: those skipped because the loss or the gradient was not finite.
        scaler: of the loss, with fp16 only.
        window: what was measured since the last row of metrics.jsonl.
        stream: where in its stream of shards the run is; empty where there is none.
        data: what the run is trained on, where all of it is known.
    """

    module: nn.Module
    optimizer: torch.optim.Optimizer
    average: WeightAverages
    step: int = 0
    num_bad_steps: int = 0
    scaler: torch.amp.GradScaler | None = None
    window: MetricWindow = field(default_factory=MetricWindow)
    stream: dict[str, Any] = field(default_factory=dict)
    data: Fingerprint | None = None

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Inside the block each process has whole weights, sharded or not. Every process must enter it.

        One alone may read and write them; those of a sharded network run it all or none.
        """
        undo = self.to_whole()
        try:
            yield
        finally:
            undo()

    def to_whole(self) -> Callable[[], None]:
        """Gather the weights, and the average that can be lent to them. Every process must call it.

        Returns:
            what cuts them up again; as long as it is not called, there is no training and no saving.
        """
        if not is_sharded(self.module):
            return lambda: None
        unshard(self.module)
        shards_again = self.average.to_whole(trained_weights(self.module))

        def undo() -> None:
            shards_again()
            reshard(self.module)

        return undo


def save_checkpoint(
    state: TrainState,
    folder: Path,
    keep_last: int,
    keep_every: int | None = None,
    damaged: Collection[Path] = (),
    writes: bool = True,
) -> Path:
    """Write `folder/step-NNNNNN`, verify it, and only then remove older ones and damaged ones.

    Args:
        writes: whether this process writes; where the state is sharded, every process must call this.

    Raises:
        UserError: the disk is full, what was written does not verify, or the weights are no longer finite. The last
            good checkpoint is left as it was, and named.
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
            write_manifest(temporary)
        fault = manifest_fault(dest)
        if fault:
            raise UserError(f"the checkpoint just written is not whole: {fault}", "check the disk")
    remove_old(dest, keep_last, keep_every, damaged)
    return dest


def checkpoint_tensors(state: TrainState) -> dict[str, dict[str, Tensor]]:
    """The tensors of a checkpoint by file and name; not copies, and where the state is sharded, shards."""
    return {
        "weights": trained_weights(state.module),
        "average": state.average.tensors(),
        "optimizer": _optimizer_tensors(state),
    }


@contextmanager
def _naming_the_last_good(folder: Path) -> Iterator[None]:
    """Add to what a user is told which checkpoint is still good."""
    try:
        yield
    except UserError as error:
        try:
            good, _ = newest_whole(folder)
        except UserError:
            good = None
        kept = f"the last good checkpoint is {good}" if good else "there is no checkpoint yet"
        raise UserError(error.what, f"{error.hint}; {kept}") from error


def load_checkpoint(state: TrainState, checkpoint: Path) -> None:
    """Bring `state` to where a checkpoint left it.

    Raises:
        UserError: a file is missing or unreadable, or the checkpoint is of another network.
    """
    load_weights(state.module, checkpoint)
    average = read_tensors(checkpoint / "average.safetensors")
    _check_same(average, state.average.tensors(), checkpoint)
    state.average.load(average)
    _load_optimizer(state, read_tensors(checkpoint / "optimizer.safetensors"))
    numbers = read_json(checkpoint / "state.json")
    state.step, state.num_bad_steps = int(numbers["step"]), int(numbers.get("num_bad_steps", 0))
    state.window = MetricWindow.from_numbers(
        numbers.get("window", {}), next(state.module.parameters()).device
    )
    state.stream = numbers.get("stream", {})
    if state.scaler is not None and "scaler" in numbers:
        state.scaler.load_state_dict(numbers["scaler"])


def load_weights(module: nn.Module, checkpoint: Path) -> None:
    """Give `module` the trained weights of a checkpoint.

    Raises:
        UserError: the file is missing or unreadable, or holds the weights of another network.
    """
    give_weights(module, read_tensors(checkpoint / "weights.safetensors"), checkpoint)


@torch.no_grad()
def give_weights(module: nn.Module, weights: dict[str, Tensor], checkpoint: Path) -> None:
    """Give `module` trained weights by name, which a checkpoint holds.

    Raises:
        UserError: they are those of another network.
    """
    live = trained_weights(module)
    _check_same(weights, live, checkpoint)
    for name, tensor in weights.items():
        assign(live[name], tensor)


def trained_weights(module: nn.Module) -> dict[str, Tensor]:
    """The weights that training moves, by name; not copies."""
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


def _check_same(stored: dict[str, Tensor], live: dict[str, Tensor], checkpoint: Path) -> None:
    if {n: t.shape for n, t in stored.items()} != {n: t.shape for n, t in live.items()}:
        raise UserError(f"{checkpoint} holds another network", "use another run_dir for another model")


def _check_finite(tensors: dict[str, Tensor], step: int) -> None:
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise UserError(
                f"the weights are no longer finite at step {step} ({name})",
                "lower optim.learning_rate and go on from the weights with `ldm train CONFIG --fork NEW_DIR`",
            )


def _numbers(state: TrainState) -> dict[str, Any]:
    numbers: dict[str, Any] = {"step": state.step, "num_bad_steps": state.num_bad_steps}
    numbers["window"] = state.window.numbers()
    if state.stream:
        numbers["stream"] = state.stream
    return numbers if state.scaler is None else {**numbers, "scaler": state.scaler.state_dict()}


def _optimizer_tensors(state: TrainState) -> dict[str, Tensor]:
    names: dict[Tensor, str] = {p: name for name, p in state.module.named_parameters()}
    return {
        f"{names[parameter]}/{key}": value if isinstance(value, Tensor) else torch.tensor(value)
        for parameter, slots in state.optimizer.state.items()
        for key, value in slots.items()
    }


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
    """A moment or the step counter as AdamW's fused kernel wants it: on the parameter's device, and a moment as the
    parameter lies in memory, for the kernel goes through both in the order of their bytes."""
    return cut_like(parameter, value) if value.shape == parameter.shape else value.to(parameter.device)

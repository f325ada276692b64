"""Everything a run needs to continue: weights, optimizer, averages, and the sums of the metrics not yet logged."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from ldm.data.fingerprint import Fingerprint
from ldm.diffusion.objective import NUM_TENTHS

from .averages import WeightAverages
from .sharding import is_sharded, reshard, unshard


@dataclass
class MetricWindow:
    """Sums of the steps' metrics since the last row of metrics.jsonl, kept on the device so that nothing waits for it.

    Part of the checkpoint, so a resumed run writes the same rows.

    Attributes:
        sums: by name, in float64; `steps` counts the steps that were not skipped.
    """

    sums: dict[str, Tensor] = field(default_factory=dict)

    def add(self, metrics: dict[str, Tensor], skipped: Tensor) -> None:
        """Add the metrics of a step, unless it was skipped."""
        kept = ~skipped.bool()
        for name, value in {**metrics, "steps": torch.ones_like(metrics["loss"])}.items():
            part = torch.where(kept, value, 0.0).double()
            self.sums[name] = self.sums[name] + part if name in self.sums else part

    def take(self) -> dict[str, Tensor]:
        """The means since the last call, which starts a new window; NaN if there was no step, or no sample.

        `loss_tK` is the mean over the samples in tenth K; `count_tK` says how many there were.
        """
        sums, self.sums = self.sums, {}
        counts = {f"count_t{tenth}" for tenth in range(NUM_TENTHS)}
        return {
            name: value / sums[name.replace("loss_t", "count_t") if name.startswith("loss_t") else "steps"]
            for name, value in sums.items()
            if name != "steps" and name not in counts
        }

    def numbers(self) -> dict[str, float]:
        """The sums as plain numbers, for a checkpoint."""
        return {name: float(value) for name, value in self.sums.items()}

    @classmethod
    def from_numbers(cls, numbers: dict[str, float], device: torch.device) -> "MetricWindow":
        """The inverse of `numbers`, exact to the last bit."""
        return cls({name: torch.tensor(v, dtype=torch.float64, device=device) for name, v in numbers.items()})


@runtime_checkable
class HasNumbers(Protocol):
    """A module whose loss depends on more than its weights: on what was measured on the data or during training."""

    def numbers(self) -> dict[str, Any]:
        """What a checkpoint has to keep, as JSON; empty if there is nothing."""

    def load_numbers(self, numbers: dict[str, Any]) -> None:
        """Restore what `numbers` returned."""


@runtime_checkable
class LearnsFromLosses(Protocol):
    """A module that draws its samples by the losses of earlier steps."""

    def start_step(self) -> None:
        """Forget the losses of a step that is repeated with a smaller micro-batch."""

    def observed(self) -> Tensor | None:
        """What this process's samples of the step have shown, [b, 2], the first column not negative; None: not used."""

    def learn(self, observed: Tensor) -> None:
        """Take in what the samples of all processes have shown, in any order."""


@runtime_checkable
class UsesAverage(Protocol):
    """A module whose loss may depend on the averaged weights."""

    def use_average(self, average: Mapping[str, Tensor]) -> None:
        """Take in the averages by the weights' names, before the first step; they are updated in place."""


@dataclass
class TrainState:
    """Everything a run needs to continue. There is no random state: every draw is a function of the step.

    Attributes:
        module: maps a batch to its losses, and holds the weights.
        step: optimizer steps done, including the skipped ones.
        num_bad_steps: steps skipped because the loss or the gradient was not finite.
        scaler: scales the loss, with fp16 only.
        window: metrics since the last row of metrics.jsonl.
        stream: the position in a stream of shards; empty without one.
        data: fingerprint of the training data; None for a stream.
        elapsed_sec: seconds that the run took up to its newest checkpoint, over all calls.
        history: what the run had written up to its newest checkpoint; empty if it is not known.
        model: hashes of the parts of the model that checkpoints do not hold, encoded; empty if there are none.
        best_scores: what each image contributed to the best of each measurement so far, as `Scores.numbers`.
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
    model: bytes = b""
    elapsed_sec: float = 0.0
    history: dict[str, Any] = field(default_factory=dict)
    best_scores: dict[str, dict[str, Any]] = field(default_factory=dict)

    def clear_step(self) -> None:
        """Discard what a step has accumulated so far, to repeat it."""
        self.optimizer.zero_grad()
        if isinstance(self.module, LearnsFromLosses):
            self.module.start_step()

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Inside the block each process has whole weights, sharded or not. Every process must enter it.

        A single process may read and write them. A sharded network must be run by all processes or none.
        """
        undo = self.to_whole()
        try:
            yield
        finally:
            undo()

    def to_whole(self) -> Callable[[], None]:
        """Gather the weights and the average that previews and results use. Every process must call it.

        Returns:
            a function that shards them again; until it is called, the state can be neither trained nor saved.
        """
        if not is_sharded(self.module):
            return lambda: None
        unshard(self.module)
        shard_averages = self.average.to_whole(trained_weights(self.module))

        def undo() -> None:
            shard_averages()
            reshard(self.module)

        return undo


def trained_weights(module: nn.Module) -> dict[str, Tensor]:
    """The trainable weights by name; not copies."""
    return {name: p for name, p in module.named_parameters() if p.requires_grad}

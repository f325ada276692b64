"""The smallest real run: seven points, a network of fifty weights, and the loop and checkpoints of all programs."""

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from ldm import noise
from ldm.config import validate
from ldm.data.order import SampleKey
from ldm.io.files import read_tensors
from train.loop.state import TrainState
from train.loop.steps import Batch
from train.run.checkpoints import checkpoints
from train.run.history import CLOCKS
from train.run.run import Run
from train.run.signals import Interrupted
from train.settings.shared import TrainSettings

TREE: dict[str, Any] = {
    "program": "denoiser",
    "num_steps": 8,
    "global_batch_size": 4,  # an epoch is a step with four samples and one with three
    "save_every": 100,
    "preview_every": 100,
    "log_every": 1,
    "device": "cpu",
    "data": {"path": "points", "holdout_fraction": 0.1},
    "optim": {"learning_rate": 0.01, "num_warmup_steps": 0, "ema_decay": 0.5},
    "validation": {"every": 3},
}


def make_settings(run_dir: Path, **changes: Any) -> TrainSettings:
    """Settings of a run of eight steps with changes; `optim` changes single settings."""
    optim = {**TREE["optim"], **changes.pop("optim", {})}
    return validate(TrainSettings, {**TREE, "run_dir": str(run_dir), **changes, "optim": optim})


class Points(Dataset[dict[str, Any]]):
    """Seven points with noise drawn in each epoch; `spoiled` maps (epoch, index) to a value to use instead."""

    def __init__(self, spoiled: dict[tuple[int, int], float] | None = None) -> None:
        self.spoiled = spoiled or {}

    def __len__(self) -> int:
        return 7

    def __getitem__(self, key: SampleKey) -> dict[str, Any]:
        sample_id = f"point-{key.sample_index}"
        drawn = torch.randn(4, generator=noise.generator_for(0, key.epoch, sample_id, "noise"))
        value = self.spoiled.get((key.epoch, key.sample_index), float(key.sample_index))
        return {"sample_id": sample_id, "x": drawn + value, "weight": key.weight}


class PointLoss(nn.Module):
    """A network with dropout; `on_forward` gets the number of earlier forward passes."""

    def __init__(self, dropout: float = 0.2, on_forward: Callable[[int], None] = lambda _: None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(4, 8), nn.SiLU(), nn.Dropout(dropout), nn.Linear(8, 1))
        self.on_forward, self.num_forwards = on_forward, 0

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Per-sample `loss` [b] of predicting the mean of x [b, 4]."""
        self.on_forward(self.num_forwards)
        self.num_forwards += 1
        return {"loss": (self.net(batch["x"]).squeeze(1) - batch["x"].mean(dim=1)).square()}


@torch.no_grad()
def measure(state: TrainState) -> dict[str, float]:
    """A number that depends on every weight."""
    return {"validation_loss": sum(float(p.sum()) for p in state.module.parameters())}


def train(
    settings: TrainSettings, module: PointLoss | None = None, dataset: Points | None = None, **options: Any
) -> TrainState:
    """Train, or resume, to the last step of the settings."""
    return Run(settings).train(
        module or PointLoss(),
        dataset or Points(),
        bucket_of=["all"] * 7,
        validate=measure,
        **{"preview": lambda state, path: None, **options},
    )


def train_with_stops(settings: TrainSettings, stops: list[int], dataset: Points | None = None) -> TrainState:
    """Train to the end, interrupted by a signal in each forward pass of `stops`, one per start."""
    for stop in stops:

        def interrupt(number: int, stop: int = stop) -> None:
            if number == stop:
                signal.raise_signal(signal.SIGTERM)

        try:
            train(settings, PointLoss(on_forward=interrupt), dataset)
        except Interrupted:
            continue
        raise AssertionError("the run ended before the signal")
    return train(settings, dataset=dataset)


def outcome(run_dir: Path) -> tuple[dict[str, Tensor], list[dict[str, Any]], dict[str, Any]]:
    """The results of a run, without times: every tensor of its newest checkpoint, its rows, the saved numbers."""
    newest = checkpoints(run_dir / "checkpoints")[-1]
    tensors = {
        f"{path.stem}/{name}": tensor
        for path in newest.glob("*.safetensors")
        for name, tensor in read_tensors(path).items()
    }
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    rows = [{k: v for k, v in json.loads(line).items() if k not in CLOCKS} for line in lines]
    numbers = json.loads((newest / "state.json").read_text())
    timed = {*CLOCKS, "history"}  # the history has a hash of the rows with their times
    return tensors, rows, {key: value for key, value in numbers.items() if key not in timed}


def assert_same_run(first: Path, second: Path) -> None:
    """Both runs have the same results to the last bit."""
    (tensors, *rest), (other_tensors, *other_rest) = outcome(first), outcome(second)
    assert rest == other_rest
    assert tensors.keys() == other_tensors.keys() and len(tensors) == 4 * 5
    assert all(torch.equal(tensors[name], other_tensors[name]) for name in tensors)

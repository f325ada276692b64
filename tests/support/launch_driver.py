"""Jobs for processes that a launcher starts: `python -m tests.support.launch_driver FILE`, with a JSON list of jobs.

    {"do": "points", "run_dir": ..., "changes": {...}, "kill": [rank, forward pass]}  a run of `tiny_training`
        "spoiled": [epoch, index]: that sample is NaN in that epoch
    {"do": "blocks", "run_dir": ..., "changes": {...}}                                a run of a network of blocks
    {"do": "copy", "run_dir": ..., "changes": {...}, "to": ...}       its newest checkpoint, loaded and saved again
    {"do": "denoiser", "run_dir": ..., "config": FILE}                the program itself

`kill`: the process of that rank kills itself with SIGKILL before that forward pass, once. The networks are small test
networks, so that nothing large is imported except for `denoiser`. With `sharding: full`, every parameter is asserted to
be a shard.
"""

import json
import math
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ldm.data.batches import collate
from ldm.data.order import SampleKey
from tests.support.tiny_training import PointLoss, Points, make_settings
from tests.support.tiny_training import train as train_points
from train.loop.state import TrainState
from train.loop.steps import Batch
from train.run.checkpoints import save_checkpoint
from train.run.run import Run

Job = dict[str, Any]


class BlockLoss(nn.Module):
    """What sharding has to handle in a denoiser: blocks in a list, a frozen weight, channels_last, parameter groups."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(4, 8, 3, padding=1)
        self.blocks = nn.ModuleList([nn.Linear(8, 8), nn.SiLU(), nn.Linear(8, 8)])
        self.last = nn.Linear(8, 1)
        self.first.bias.requires_grad_(False)  # type: ignore[union-attr]
        self.first.to(memory_format=torch.channels_last)
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        self.groups: list[dict[str, Any]] = [{"name": "all", "params": trained, "lr_scale": 0.5}]

    def parameter_groups(self) -> list[dict[str, Any]]:
        return self.groups

    def guess(self, x: Tensor) -> Tensor:
        """x [b, 4] -> [b]."""
        hidden = self.first(x[:, :, None, None]).flatten(1)
        for block in self.blocks:
            hidden = block(hidden)
        guessed: Tensor = self.last(hidden).squeeze(1)
        return guessed

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Per-sample `loss` [b] of predicting the mean of x [b, 4]."""
        return {"loss": (self.guess(batch["x"]) - batch["x"].mean(dim=1)).square()}


def assert_shards(state: TrainState, sharded: bool) -> None:
    for tensor in [*state.module.parameters(), *state.average.tensors().values()]:
        assert isinstance(tensor, DTensor) == sharded
        # a bias of one number is only on the first process
        assert (
            not isinstance(tensor, DTensor)
            or tensor.to_local().numel() * 2 == tensor.numel()
            or len(tensor) == 1
        )
    for parameter, slots in state.optimizer.state.items():
        assert isinstance(parameter, DTensor) == isinstance(slots["exp_avg"], DTensor) == sharded


def train_blocks(run_dir: Path, changes: dict[str, Any]) -> None:
    """Train to the end, with validation, previews and a result like the programs."""
    run, module, points = Run(make_settings(run_dir, **changes)), BlockLoss(), Points()
    batch = collate([points[SampleKey(0, index, 1.0)] for index in range(7)])

    @torch.no_grad()
    def validate(state: TrainState) -> dict[str, float]:
        assert_shards(state, run.sharded)
        with state.average.applied():
            return {"validation_loss": float(module(batch)["loss"].mean())}

    @torch.no_grad()
    def show(state: TrainState, path: Path) -> None:
        with state.average.applied():
            shown = module.guess(batch["x"]).tolist() + module(batch)["loss"].tolist()
        if run.main:
            path.write_text(json.dumps(shown))

    state = run.train(module, points, bucket_of=["all"] * 7, preview=show, validate=validate)
    if run.main:
        show(state, run_dir / "result.json")
    run.accelerator.wait_for_everyone()


def copy_checkpoint(run_dir: Path, changes: dict[str, Any], to: Path) -> None:
    """Load a run's newest checkpoint and save it elsewhere."""
    run = Run(make_settings(run_dir, **changes))
    state = run.start(BlockLoss())
    assert_shards(state, run.sharded)
    save_checkpoint(state, to, 1, writes=run.main)
    run.accelerator.wait_for_everyone()


def train_denoiser(config: str) -> None:
    """The whole program, which keeps the process group for the next job."""
    from ldm.config import load_settings
    from train.denoiser import DenoiserSettings, train

    train(load_settings(DenoiserSettings, Path(config)))
    torch.distributed.barrier()


def dying(run_dir: Path, kill: list[int] | None) -> Callable[[int], None]:
    """A function that a module calls in each forward pass."""
    marker = run_dir.with_suffix(".killed")

    def on_forward(number: int) -> None:
        if kill == [int(os.environ["RANK"]), number] and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    return on_forward


def do(job: Job) -> None:
    """Do one job."""
    run_dir, changes = Path(job.get("run_dir", "")), dict(job.get("changes", {}))
    match job["do"]:
        case "points":
            train_points(
                make_settings(run_dir, **changes),
                PointLoss(job.get("dropout", 0.2), on_forward=dying(run_dir, job.get("kill"))),
                Points({tuple(job["spoiled"]): math.nan} if "spoiled" in job else None),
            )
        case "blocks":
            train_blocks(run_dir, changes)
        case "copy":
            copy_checkpoint(run_dir, changes, Path(job["to"]))
        case "denoiser":
            train_denoiser(job["config"])


def do_all(jobs: list[Job], environment: dict[str, Any]) -> None:
    """Do jobs one after the other, in a process that is one of several."""
    os.environ.update({name: str(value) for name, value in environment.items()})
    torch.set_num_threads(1)
    for job in jobs:
        do(job)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    do_all(json.loads(Path(sys.argv[1]).read_text()), {})

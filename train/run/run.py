"""What surrounds the loop in every program: the run directory, the devices, stopping, saving and resuming."""

import os
import sys
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader, Dataset

from ldm.config import to_yaml
from ldm.data.batches import make_loader
from ldm.data.fingerprint import Fingerprint
from ldm.data.order import BatchOrder, steps_per_epoch
from ldm.data.streaming import StreamOrder
from ldm.io.files import disk_errors, remove_leftovers, write_bytes
from ldm.io.locks import FolderLock
from ldm.io.progress import work_bar

from ..loop.averages import WeightAverages
from ..loop.optim import make_optimizer
from ..loop.sharding import shard
from ..loop.steps import train_steps
from ..settings.shared import TrainSettings
from .after_steps import AfterSteps, Preview, Validate
from .checkpoints import newest_whole, remove_after
from .devices import asked_to_shard, make_accelerator
from .log import TrainLog
from .output_checks import check_places
from .resume import check_resumable, check_same_data, fork_source
from .signals import Interrupted, StopSignal
from .state import TrainState, load_checkpoint, load_weights, save_checkpoint
from .trackers import Tracker, check_trackers, open_trackers


class Shares(TypedDict):
    """This process, how many there are, and how it waits for the others."""

    rank: int
    num_processes: int
    barrier: Callable[[], None]


@dataclass
class Run:
    """One training run: its settings, its directory, which no other run may use meanwhile, and its devices.

    Attributes:
        planning: the run is only planned: its directory is neither written to nor kept from others.
        sharded: each of several processes holds a part of the weights.

    Raises:
        UserError: another process trains there, files of the user's are there, it was begun with other settings, or the
            device cannot do as asked.
    """

    settings: TrainSettings
    planning: bool = False
    accelerator: Accelerator = field(init=False)
    sharded: bool = field(init=False)
    changes: list[str] = field(init=False)
    _data: Fingerprint | None = field(init=False, default=None)
    _lock: FolderLock | None = field(init=False, default=None)
    _damaged: list[Path] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        check_trackers(self.settings.trackers)
        check_places(self.settings)
        asked = asked_to_shard(self.settings)
        self.accelerator = make_accelerator(self.settings)
        self.sharded = asked and self.accelerator.num_processes > 1
        if self.main and self.run_dir.is_dir() and not self.planning:
            self._lock = FolderLock(self.run_dir)
        self.changes = check_resumable(self.settings)
        torch.manual_seed(self.settings.seed)  # the random start of the networks

    @property
    def main(self) -> bool:
        """Whether this process is the one that writes."""
        return bool(self.accelerator.is_main_process)

    @property
    def device(self) -> torch.device:
        """Where this process computes."""
        return torch.device(self.accelerator.device)

    def shares(self) -> Shares:
        """How work is shared over the processes."""
        accelerator = self.accelerator
        return {
            "rank": accelerator.process_index,
            "num_processes": accelerator.num_processes,
            "barrier": accelerator.wait_for_everyone,
        }

    def warn(self, what: str) -> None:
        """One line on stderr, from the main process."""
        if self.main:
            print(f"warning: {what}", file=sys.stderr)

    @contextmanager
    def progress(self, doing: str, unit: str, total: int) -> Iterator[Callable[[int], None]]:
        """A bar for work before the first step; yields what is told how many units this process has done."""
        if not self.main:
            yield lambda done: None
            return
        with work_bar(unit) as bar:
            bar.say(doing)
            yield lambda done: bar.show(done, -(-total // self.accelerator.num_processes))

    @property
    def run_dir(self) -> Path:
        """The run's directory."""
        return self.settings.run_dir

    def go_on_with(self, data: Fingerprint) -> None:
        """Note what the run is trained on, for its checkpoints; every process must call it before `train`.

        Raises:
            UserError: there are checkpoints already, and they are of other data.
        """
        self._data = data
        self.changes += check_same_data(self.run_dir, data)

    def train(
        self,
        module: nn.Module,
        dataset: "Dataset[Any]",
        *,
        bucket_of: Sequence[Hashable] = (),
        stream: Callable[[int, Mapping[str, Any]], StreamOrder] | None = None,
        preview: Preview,
        validate: Validate | None = None,
        opened: Callable[[], None] = lambda: None,
        may_split: bool = True,
    ) -> TrainState:
        """Train `module` to the end of the settings, resuming where a checkpoint is, saving as it goes.

        Args:
            module: maps a batch to per-sample tensors, among them `loss`.
            dataset: indexed by SampleKey; with `stream` by Turn.
            bucket_of: for each sample what it shares with those that it may stand in one batch with: its size.
            stream: in place of `bucket_of`: gives the order from a step on, and from what was saved of it there.
            preview: draws a picture of what the state can do into the path given, as in `AfterSteps`.
            validate: measures the state, on every rank, for a row of metrics.jsonl every `validation.every` steps.
            opened: called on the main process when the run's directory is there, before the first step.
            may_split: whether micro-batches may be halved where the device's memory is too small: not where the
                samples of a batch are compared with each other.

        Raises:
            Interrupted: a signal arrived; a checkpoint was written.
            UserError: too many steps had no finite loss, or the disk is full.
        """
        settings = self.settings
        if self.main:
            self._open_run_dir()
            opened()
        self.accelerator.wait_for_everyone()
        state = self.start(module)
        if self.main:
            self._forget_after(state.step)
        model = self.prepare(module)
        streamed = stream(state.step, state.stream) if stream else None
        order = streamed or self.order(bucket_of, state.step)
        with StopSignal().watching() as stop, self._log(state.step) as log:
            for line in (self._plan(bucket_of, state), *self.changes):
                log.say(line)
            loader = self.loader(dataset, order)
            records = train_steps(state, model, loader, self.accelerator, settings, may_split=may_split)
            after = AfterSteps(
                settings, self.accelerator, state, log, preview=preview, validate=validate, save=self._save
            )
            while not after.finished and (record := next(records, None)):
                if streamed:
                    state.stream = streamed.state_after(state.step)
                number = stop.agreed(self.accelerator)
                after(record, stopping=bool(number))
                if number:
                    raise Interrupted(number, state.step)
        state.to_whole()  # for good: the main process alone writes the result
        return state

    def _log(self, start_step: int) -> TrainLog:
        settings = self.settings
        trackers: Sequence[Tracker] = ()
        if self.main:
            told = settings.model_dump()
            trackers = open_trackers(settings.trackers, self.run_dir, told, start_step=start_step)
        return TrainLog(
            self.run_dir,
            start_step=start_step,
            num_steps=settings.num_steps,
            main=self.main,
            trackers=trackers,
        )

    def _open_run_dir(self) -> None:
        """Make the directory and record the settings: only now, when all that could be wrong has been found."""
        with disk_errors(self.run_dir):
            self.run_dir.mkdir(parents=True, exist_ok=True)
        if self._lock is None:
            self._lock = FolderLock(self.run_dir)
            check_resumable(self.settings)  # another run may have been and gone meanwhile
            if self._data is not None:
                check_same_data(self.run_dir, self._data)
        remove_leftovers(self.run_dir)
        remove_leftovers(self.run_dir / "checkpoints")
        remove_leftovers(self.run_dir / "averages")
        remove_leftovers(self.run_dir / "best")
        write_bytes(self.run_dir / "config.yaml", to_yaml(self.settings).encode())

    def _forget_after(self, step: int) -> None:
        """Remove what stands there of steps that will be done again, perhaps with other settings."""
        for name in ("averages", "best"):
            if later := remove_after(self.run_dir / name, step):
                self.changes.append(
                    f"{name}: removed what is of steps after {step}, {', '.join(each.name for each in later)}"
                )

    def start(self, module: nn.Module) -> TrainState:
        """The state that training goes on from: fresh, forked, or of the newest whole checkpoint."""
        module.to(self.device).train()
        if self.sharded:
            shard(module, self.device)
        optim = self.settings.optim
        checkpoint, faults = newest_whole(self.run_dir / "checkpoints")
        source = None if checkpoint else fork_source(self.settings)
        if source:
            load_weights(module, source)
            self.changes = [f"from the weights of {source}"]
        averages = WeightAverages(module, optim.ema_decay, optim.average)
        optimizer = make_optimizer(module, optim)
        assert {p for group in optimizer.param_groups for p in group["params"]} <= set(module.parameters())
        state = TrainState(module, optimizer, averages, scaler=self.accelerator.scaler, data=self._data)
        self._damaged = list(faults)
        for fault in faults.values() if self.main else ():
            print(f"warning: {fault}; going back to {checkpoint}", file=sys.stderr)
        if checkpoint:
            load_checkpoint(state, checkpoint)
        return state

    def prepare(self, module: nn.Module) -> nn.Module:
        """What `start` was given, as the loop calls it: its gradients are the mean over all processes."""
        return module if self.sharded else self.accelerator.prepare_model(module)

    def order(self, bucket_of: Sequence[Hashable], start_step: int) -> BatchOrder:
        """This process's batches from `start_step` to the end."""
        settings = self.settings
        return BatchOrder(
            settings.seed,
            bucket_of,
            settings.global_batch_size,
            start_step,
            settings.num_steps,
            rank=self.accelerator.process_index,
            num_processes=self.accelerator.num_processes,
        )

    def loader(self, dataset: "Dataset[Any]", order: Iterable[list[Any]]) -> DataLoader[Any]:
        """The batches of `order`, made beside the training where it runs on CUDA, in memory that it copies from."""
        on_cuda = self.device.type == "cuda"
        num_workers = self.settings.data.num_workers
        if num_workers is None:
            num_here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
            num_workers = min(4, (os.cpu_count() or 1) // num_here) if on_cuda else 0
        return make_loader(dataset, order, num_workers, pin_memory=on_cuda)

    def _plan(self, bucket_of: Sequence[Hashable], state: TrainState) -> str:
        settings = self.settings
        weights = sum(p.numel() for p in state.average.live.values())
        amount = "samples shard by shard"
        if bucket_of:
            passes = settings.num_steps / steps_per_epoch(bucket_of, settings.global_batch_size)
            amount = f"{len(bucket_of)} samples ({passes:.1f} passes)"
        begin = f"resuming at step {state.step}" if state.step else "starting"
        return (
            f"{begin}: {settings.program} with {weights / 1e6:.1f}M trained weights on {self.device.type} x "
            f"{self.accelerator.num_processes}; {amount}, {settings.num_steps} steps of "
            f"{settings.global_batch_size} samples; {self.run_dir}"
        )

    def _save(self, state: TrainState) -> None:
        settings, folder = self.settings, self.run_dir / "checkpoints"
        save_checkpoint(
            state, folder, settings.keep_checkpoints, settings.keep_every, self._damaged, self.main
        )
        self._damaged = []
        self.accelerator.wait_for_everyone()

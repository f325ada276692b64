"""What every program shares around its model and data: the run's directory and devices, and the training loop."""

import os
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader, Dataset

from ldm.data.batches import make_loader
from ldm.data.fingerprint import Fingerprint
from ldm.data.order import BatchOrder, steps_per_epoch
from ldm.data.streaming import StreamOrder
from ldm.io.files import disk_errors
from ldm.io.messages import say_warning
from ldm.io.progress import work_bar

from ..loop.averages import WeightAverages
from ..loop.optim import make_optimizer
from ..loop.precision import to_bfloat16
from ..loop.processes import Processes, num_processes_on_this_machine, processes_of
from ..loop.sharding import shard
from ..loop.state import TrainState, UsesAverage
from ..loop.steps import StepRecord, train_steps
from ..settings.shared import TrainSettings
from .after_steps import AfterSteps, Preview, PreviewStopped, Validate
from .checkpoints import (
    checkpoint_fault,
    checkpoints,
    load_checkpoint,
    load_module_numbers,
    load_weights,
    newest_whole,
    save_checkpoint,
)
from .devices import asked_to_shard, make_accelerator
from .directory import RunDirectory, check_outputs
from .held_model import HeldModel, check_same_model
from .history import History, lost_history
from .log import TrainLog
from .resume import check_resumable, check_same_data, fork_source
from .signals import Interrupted, StopSignal
from .trackers import Tracker, check_trackers, open_trackers


@dataclass
class Run:
    """One training run: its settings, its directory, and its devices.

    Attributes:
        planning: the run is only planned: its directory is neither locked nor written to.
        processes: this process and the others.
        sharded: each of several processes holds a shard of the weights.
        changes: what differs from the run that is resumed, a line each.
        on_preview_step: to be called after each sampling step of a preview, with the steps done and their total.
        on_evaluated: to be called after each batch of images that are generated to be measured, likewise.

    Raises:
        UserError: another process trains in the directory, it contains the user's files, the run was started with other
            settings, or the device does not support the settings.
    """

    settings: TrainSettings
    planning: bool = False
    accelerator: Accelerator = field(init=False)
    processes: Processes = field(init=False)
    sharded: bool = field(init=False)
    directory: RunDirectory = field(init=False)
    changes: list[str] = field(init=False)
    on_preview_step: Callable[[int, int], None] = field(init=False)
    on_evaluated: Callable[[int, int], None] = field(init=False)
    _data: Fingerprint | None = field(init=False, default=None)
    _model: HeldModel | None = field(init=False, default=None)
    _damaged: list[Path] = field(init=False, default_factory=list)
    _to_float32: Callable[[], None] = field(init=False)

    def __post_init__(self) -> None:
        self.on_preview_step = self.on_evaluated = lambda done, total: None
        self._to_float32 = lambda: None
        check_trackers(self.settings.trackers)
        check_outputs(self.settings)
        asked = asked_to_shard(self.settings)
        self.accelerator = make_accelerator(self.settings)
        self.processes = processes_of(self.accelerator)
        self.sharded = asked and self.processes.num_processes > 1
        self.directory = RunDirectory(self.settings)
        if self.main and not self.planning:
            self.directory.lock_existing()
        self.changes = check_resumable(self.settings)
        torch.manual_seed(self.settings.seed)  # the random initial weights of the networks

    @property
    def main(self) -> bool:
        """Whether this process is the one that writes."""
        return self.processes.is_main

    @property
    def device(self) -> torch.device:
        """The device of this process."""
        return torch.device(self.accelerator.device)

    @property
    def run_dir(self) -> Path:
        """The run's directory."""
        return self.settings.run_dir

    def warn(self, what: str) -> None:
        """One line on stderr, from the main process."""
        if self.main:
            say_warning(what)

    @contextmanager
    def progress(self, doing: str, unit: str, total: int) -> Iterator[Callable[[int], None]]:
        """A progress bar for work before the first step; yields a function that takes this process's count."""
        if not self.main:
            yield lambda done: None
            return
        with work_bar(unit) as bar:
            bar.say(doing)
            yield lambda done: bar.show(done, -(-total // self.processes.num_processes))

    def use_data(self, data: Fingerprint) -> None:
        """Record what the run is trained on, for its checkpoints. Every process must call it before `train`.

        Raises:
            UserError: there are checkpoints already, and they were trained on other data.
        """
        self._data = data
        self.changes += check_same_data(self.run_dir, data)

    def use_model(self, model: HeldModel) -> None:
        """Record what model the run stands on, for its checkpoints. Every process must call it before `train`.

        Raises:
            UserError: there are checkpoints already, and they were trained with another model.
        """
        self._model = model
        self.changes += check_same_model(self.run_dir, model)

    def train(
        self,
        module: nn.Module,
        dataset: "Dataset[Any]",
        *,
        bucket_of: Sequence[Hashable] = (),
        sample_ids: Sequence[str] = (),
        stream: Callable[[int, Mapping[str, Any]], StreamOrder] | None = None,
        preview: Preview,
        validate: Validate | None = None,
        evaluate: Validate | None = None,
        opened: Callable[[], None] = lambda: None,
        may_split: bool = True,
    ) -> TrainState:
        """Train `module` up to the last step of the settings, from the newest checkpoint on, and save on the way.

        Args:
            module: maps a batch to per-sample tensors, including `loss`.
            dataset: indexed by SampleKey; with `stream` by Turn.
            bucket_of: for each sample what the samples of a batch must share: its size.
            sample_ids: of each sample; needed with `data.order = keyed`.
            stream: in place of `bucket_of`: makes the order from a step and from what was saved of the stream there.
            preview: draws a preview image, see `AfterSteps`.
            validate: measures the state every `validation.every` steps, on every process.
            evaluate: measures generated images every `validation.evaluate_every` steps, on every process.
            opened: called on the main process once the run's directory exists, before the first step.
            may_split: whether micro-batches may be halved when memory runs out; not if the loss compares the samples of
                a batch with each other.

        Raises:
            Interrupted: a signal arrived; a checkpoint was written.
            UserError: too many steps had no finite loss, or the disk is full.
        """
        if self.main:
            self.directory.open(self._data, self._model)
            opened()
        self.processes.barrier()
        state = self.start(module)
        if self.main:
            self.changes += self.directory.remove_results_after(state.step)
            self.changes += self._lost_history(state)
        model = self.prepare(module)
        streamed = stream(state.step, state.stream) if stream else None
        loader = self.loader(dataset, streamed or self.order(bucket_of, state.step, sample_ids))
        full = disk_errors(self.run_dir, only_full=True)
        with full, StopSignal().watching() as stop, self._open_log(state) as log:
            self.on_preview_step = partial(
                _on_preview_step, stop, log, self.processes if self.sharded else None
            )  # not a method: a cycle would keep the lock until the garbage collector runs
            self.on_evaluated = partial(log.working, "evaluation, image")
            for line in (self._summary(bucket_of, state), *self.changes):
                log.say(line)
            steps = train_steps(state, model, loader, self.accelerator, self.settings, may_split=may_split)
            after_step = AfterSteps(
                self.settings,
                self.accelerator,
                state,
                log,
                preview=preview,
                validate=validate,
                evaluate=evaluate,
                save=self._save,
            )
            self._train_steps(steps, after_step, state, streamed, stop)
        state.to_whole()  # not undone: the main process alone writes the result
        self._to_float32()
        return state

    def _train_steps(
        self,
        steps: Iterator[StepRecord],
        after_step: AfterSteps,
        state: TrainState,
        streamed: StreamOrder | None,
        stop: StopSignal,
    ) -> None:
        """The training loop: `steps` makes one optimizer step at a time.

        Raises:
            Interrupted: a signal arrived; a checkpoint was written.
        """
        while not after_step.finished and (record := next(steps, None)):
            if streamed:
                state.stream = streamed.state_after(state.step)
            signal = stop.agreed(self.processes)
            after_step(record, stopping=bool(signal))
            if not signal and after_step.previewing.due(record.step, self.settings.num_steps):
                signal = stop.agreed(self.processes)  # it may have arrived during the preview
            if signal:
                after_step.save_now(record.step)
                raise Interrupted(signal, state.step)

    def start(self, module: nn.Module) -> TrainState:
        """The state that training starts from: new, forked, or of the newest undamaged checkpoint."""
        module.to(self.device).train()
        if self.sharded:
            shard(module, self.device, self.processes.num_processes)
        optim = self.settings.optim
        folder = self.run_dir / "checkpoints"
        source = None if checkpoints(folder) else fork_source(self.settings)
        if source:
            load_weights(module, source)
            load_module_numbers(module, source)
            self.changes = [f"starting from the weights of {source}"]
        if optim.weights == "bfloat16":
            self._to_float32 = to_bfloat16(module)
        averages = WeightAverages(module, optim.ema_decay, optim.average)
        if isinstance(module, UsesAverage):
            module.use_average(averages.current)
        optimizer = make_optimizer(module, optim, seed=self.settings.seed)
        assert {p for group in optimizer.param_groups for p in group["params"]} <= set(module.parameters())
        model = self._model.encoded if self._model else b""
        scaler = self.accelerator.scaler
        state = TrainState(module, optimizer, averages, scaler=scaler, data=self._data, model=model)
        checkpoint, faults = newest_whole(folder, partial(checkpoint_fault, state))
        self._damaged = list(faults)
        for fault in faults.values():
            self.warn(f"{fault}; going back to {checkpoint}")
        if checkpoint:
            load_checkpoint(state, checkpoint)
        return state

    def prepare(self, module: nn.Module) -> nn.Module:
        """`module` for the loop: its gradients are averaged over all processes."""
        return module if self.sharded else self.accelerator.prepare_model(module)

    def order(
        self, bucket_of: Sequence[Hashable], start_step: int, sample_ids: Sequence[str] = ()
    ) -> BatchOrder:
        """This process's batches from `start_step` to the end."""
        settings = self.settings
        return BatchOrder(
            settings.seed,
            bucket_of,
            settings.global_batch_size,
            start_step,
            settings.num_steps,
            rank=self.processes.rank,
            num_processes=self.processes.num_processes,
            sample_ids=sample_ids if settings.data.order == "keyed" else None,
        )

    def loader(self, dataset: "Dataset[Any]", order: Iterable[list[Any]]) -> DataLoader[Any]:
        """The batches of `order`. On CUDA, worker processes prepare them in page-locked memory."""
        on_cuda = self.device.type == "cuda"
        num_workers = self.settings.data.num_workers
        if num_workers is None:
            num_cpus = (os.cpu_count() or 1) // num_processes_on_this_machine()
            num_workers = min(4, num_cpus) if on_cuda else 0
        return make_loader(dataset, order, num_workers, pin_memory=on_cuda)

    def _lost_history(self, state: TrainState) -> list[str]:
        if not state.step:
            return []
        before = History.model_validate(state.history) if state.history else None
        return lost_history(self.settings, state.step, before, state.num_bad_steps)

    def _open_log(self, state: TrainState) -> TrainLog:
        settings, start_step = self.settings, state.step
        trackers: Sequence[Tracker] = ()
        if self.main:
            shown = settings.model_dump()
            trackers = open_trackers(settings.trackers, self.run_dir, shown, start_step=start_step)
        return TrainLog(
            self.run_dir,
            start_step=start_step,
            num_steps=settings.num_steps,
            main=self.main,
            elapsed_sec=state.elapsed_sec,
            trackers=trackers,
        )

    def _summary(self, bucket_of: Sequence[Hashable], state: TrainState) -> str:
        settings = self.settings
        weights = sum(p.numel() for p in state.average.live.values())
        amount = "samples shard by shard"
        if bucket_of:
            passes = settings.num_steps / steps_per_epoch(bucket_of, settings.global_batch_size)
            amount = f"{len(bucket_of)} samples ({passes:.1f} epochs)"
        begin = f"resuming at step {state.step}" if state.step else "starting"
        return (
            f"{begin}: {settings.program} with {weights / 1e6:.1f}M trained weights on {self.device.type} x "
            f"{self.processes.num_processes}; {amount}, {settings.num_steps} steps of "
            f"{settings.global_batch_size} samples; {self.run_dir}"
        )

    def _save(self, state: TrainState) -> None:
        settings, folder = self.settings, self.run_dir / "checkpoints"
        save_checkpoint(
            state, folder, settings.keep_checkpoints, settings.keep_every, self._damaged, self.main
        )
        self._damaged = []
        self.processes.barrier()


def _on_preview_step(
    stop: StopSignal, log: TrainLog, processes: Processes | None, done: int, total: int
) -> None:
    """Show how far a preview is. If a signal has arrived, stop it.

    Args:
        processes: those that draw it together and must stop together, if the network is sharded.
    """
    log.working("preview, step", done, total)
    if stop.agreed(processes) if processes else stop.number:
        raise PreviewStopped

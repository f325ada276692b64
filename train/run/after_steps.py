"""What happens after each step of a run, each at its own interval: log, validate, preview, snapshot, save."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from ..loop.averages import save_snapshot
from ..loop.processes import processes_of
from ..loop.sharding import is_sharded
from ..loop.state import TrainState
from ..loop.steps import Periodic, StepRecord
from ..settings.shared import TrainSettings
from .bad_steps import BadSteps
from .best import keep_best, prune_best, should_stop
from .log import TrainLog, read_metrics

Preview = Callable[[TrainState, Path], None]
Validate = Callable[[TrainState], dict[str, float]]


class AfterSteps:
    """Called with each step's record; does what is due, in the order of this module's first line.

    The rows and snapshots of a step are therefore written before its checkpoint, and a run that resumes from the
    checkpoint has them all.

    Args:
        preview: draws a preview image of the state, which the main process writes. If the state is sharded, every
            process calls it and runs the network equally often; otherwise only the main process does.
        validate: measures the state, on every process.
        save: writes a checkpoint; every process calls it.

    Attributes:
        finished: whether training should stop early because the validation loss no longer falls.
    """

    def __init__(
        self,
        settings: TrainSettings,
        accelerator: Accelerator,
        state: TrainState,
        log: TrainLog,
        *,
        preview: Preview,
        validate: Validate | None,
        save: Callable[[TrainState], None],
    ) -> None:
        self.accelerator = accelerator
        self.settings, self.state, self.log = settings, state, log
        self.main = processes_of(accelerator).is_main
        self.preview, self.validate, self.save = preview, validate, save
        self.micro_batch = settings.max_micro_batch
        self.bad = BadSteps(settings.run_dir / "bad_steps.jsonl", state, settings.max_bad_steps, accelerator)
        self.logging = Periodic(settings.log_every)
        self.finished = self._is_finished()
        self.validating = Periodic(settings.validation.every if validate else 0)
        self.previewing = Periodic(settings.preview_every)
        self.snapshotting = Periodic(settings.optim.average.snapshot_every)
        self.saving = Periodic(settings.save_every, also=settings.keep_every)

    def __call__(self, record: StepRecord, *, stopping: bool) -> None:
        """Do what is due after a step. If the run stops here, it is measured as usual and saved.

        Raises:
            UserError: too many steps were skipped, or the checkpoint could not be written.
        """
        step, last = record.step, self.settings.num_steps
        self.bad.note(record)
        self.state.window.add(record.metrics, record.skipped)
        if record.micro_batch < self.micro_batch:
            self.micro_batch = record.micro_batch
            self.log.say(f"out of memory: from now on at most {self.micro_batch} samples at once")
        if self.logging.due(step, last):
            self._log(record)
        if self.validating.due(step, last):
            self._validate(step)
        if not stopping and self.previewing.due(step, last):
            self._preview(step)
        if self.snapshotting.due(step, last):
            save_snapshot(self.state.average, step, self.settings.run_dir / "averages", writes=self.main)
        if stopping or self.finished or self.saving.due(step, last):
            self._save(step)

    def stop(self, step: int) -> None:
        """Save the state after a step that was thought not to be the last."""
        self._save(step)

    def _log(self, record: StepRecord) -> None:
        self._settle(record.step)
        means = self.state.window.take()
        if math.isnan(float(means["loss"])):  # every step since the last row was skipped
            self.log.append({"step": record.step, "skipped": True, "learning_rate": record.learning_rate})
        else:
            self.log.record(replace(record, metrics=means))

    def _settle(self, step: int) -> None:
        for bad in self.bad.settle():
            self.log.say(f"step {bad} was skipped: its loss or gradient is not finite; see {self.bad.path}")

    def _validate(self, step: int) -> None:
        assert self.validate is not None
        self.log.append({"step": step, **self.validate(self.state)})
        if self.settings.validation.keep_best:
            self._keep_best(step)
        self.finished = self._is_finished()
        if self.finished and step < self.settings.num_steps:
            self.log.say(
                f"no better validation loss in {self.settings.validation.patience} measurements: finished"
            )

    def _keep_best(self, step: int) -> None:
        with self.state.whole():
            if self.main:
                with self.state.average.applied():
                    keep_best(self.settings.run_dir, self.state.average.live, step, self._rows())

    def _rows(self) -> list[dict[str, Any]]:
        return read_metrics(self.settings.run_dir) if self.main else []

    def _is_finished(self) -> bool:
        """Whether the validation loss says so; the main process reads its rows and tells the others."""
        patience = self.settings.validation.patience
        if not patience:
            return False
        stop = torch.tensor(
            float(self.main and should_stop(self._rows(), patience)), device=self.accelerator.device
        )
        return bool(self.accelerator.reduce(stop, "sum") > 0)

    def _preview(self, step: int) -> None:
        path = self.settings.run_dir / "previews" / f"step-{step:06d}.png"
        with self.state.whole():
            # FSDP records each forward pass and prefetches accordingly in the next backward pass; if only some
            # processes ran it, they would wait for each other forever
            if self.main or is_sharded(self.state.module):
                path.parent.mkdir(exist_ok=True)
                self.preview(self.state, path)

    def _save(self, step: int) -> None:
        self._settle(step)
        self.save(self.state)
        if self.main:
            prune_best(self.settings.run_dir)

"""What is done after the steps of a run: told, measured, drawn, averages kept, saved, each at its period."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from ..loop.averages import save_snapshot
from ..loop.sharding import is_sharded
from ..loop.steps import Periodic, StepRecord
from ..settings.shared import TrainSettings
from .bad_steps import BadSteps
from .best import keep_best, prune_best, should_stop
from .log import TrainLog, read_metrics
from .state import TrainState

Preview = Callable[[TrainState, Path], None]
Validate = Callable[[TrainState], dict[str, float]]


class AfterSteps:
    """Called with each step's record; what is due at it is done in the order of the module's first line.

    So the rows and snapshots of a step are there before its checkpoint: a run that goes on from it has them all.

    Args:
        preview: draws a picture of what the state can do; the main process writes it. Where the state is sharded every
            process calls it and runs the network as often, else the main one alone.
        validate: measures the state, on every process.
        save: writes a checkpoint; every process calls it.

    Attributes:
        finished: whether the validation loss has stopped falling, so that no step should follow.
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
        self.settings, self.main, self.state, self.log = settings, accelerator.is_main_process, state, log
        self.preview, self.validate, self.save = preview, validate, save
        self.micro_batch = settings.max_micro_batch
        self.bad = BadSteps(settings.run_dir / "bad_steps.jsonl", state, settings.max_bad_steps, accelerator)
        self.telling = Periodic(settings.log_every)
        self.finished = self._is_finished()
        self.validating = Periodic(settings.validation.every if validate else 0)
        self.drawing = Periodic(settings.preview_every)
        self.keeping = Periodic(settings.optim.average.snapshot_every)
        self.saving = Periodic(settings.save_every, also=settings.keep_every)

    def __call__(self, record: StepRecord, *, stopping: bool) -> None:
        """Do what is due after a step. A run that stops here is measured like one that goes on, and saved.

        Raises:
            UserError: too many steps were skipped, or the checkpoint could not be written.
        """
        step, last = record.step, self.settings.num_steps
        self.bad.note(record)
        self.state.window.add(record.metrics, record.skipped)
        if record.micro_batch < self.micro_batch:
            self.micro_batch = record.micro_batch
            self.log.say(f"out of memory: at most {self.micro_batch} samples at once from here on")
        if self.telling.due(step, last):
            self._tell(record)
        if self.validating.due(step, last):
            self._validate(step)
        if not stopping and self.drawing.due(step, last):
            self._draw(step)
        if self.keeping.due(step, last):
            save_snapshot(self.state.average, step, self.settings.run_dir / "averages", writes=self.main)
        if stopping or self.finished or self.saving.due(step, last):
            self._save(step)

    def _tell(self, record: StepRecord) -> None:
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
        """Whether the validation loss says so; every process hears what the main one read in its rows."""
        patience = self.settings.validation.patience
        if not patience:
            return False
        stop = torch.tensor(
            float(self.main and should_stop(self._rows(), patience)), device=self.accelerator.device
        )
        return bool(self.accelerator.reduce(stop, "sum") > 0)

    def _draw(self, step: int) -> None:
        path = self.settings.run_dir / "previews" / f"step-{step:06d}.png"
        with self.state.whole():
            # FSDP notes each forward pass and gathers ahead by it in the next backward pass: all processes alike, or
            # they wait for each other for ever
            if self.main or is_sharded(self.state.module):
                path.parent.mkdir(exist_ok=True)
                self.preview(self.state, path)

    def _save(self, step: int) -> None:
        self._settle(step)
        self.save(self.state)
        if self.main:
            prune_best(self.settings.run_dir)

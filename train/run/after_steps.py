"""What happens after each step of a run, each at its own interval: log, validate, snapshot, save, preview."""

import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from ldm.evaluation.paired import Scores

from ..loop.averages import save_snapshot
from ..loop.processes import processes_of
from ..loop.sharding import is_sharded
from ..loop.state import TrainState
from ..loop.steps import Periodic, StepRecord
from ..settings.shared import TrainSettings
from .bad_steps import BadSteps
from .best import (
    MEASURES,
    keep_best,
    overfitting,
    paired_change,
    progress_note,
    prune_best,
    should_stop,
)
from .history import BAD_STEPS, history_until
from .log import TrainLog, read_metrics

Preview = Callable[[TrainState, Path], None]
Validate = Callable[[TrainState], Mapping[str, float | Scores]]
"""Measures a state. Numbers go into a row of metrics.jsonl; scores have the name of their measurement in the rows and
`_scores` behind it, and are compared with those of the best step so far."""


class PreviewStopped(Exception):
    """Raised while a preview is drawn, to stop it: the run was asked to stop."""


class AfterSteps:
    """Called with each step's record; does what is due, in the order of this module's first line.

    The rows and snapshots of a step are therefore written before its checkpoint, and a run that resumes from the
    checkpoint has them all. Previews come last: they can take longer than the steps, and nothing depends on them.

    Args:
        preview: draws a preview image of the state, which the main process writes. If the state is sharded, every
            process calls it and runs the network equally often; otherwise only the main process does. It may raise
            PreviewStopped.
        validate: measures the state, on every process.
        evaluate: measures images that it generates, on every process; whole weights if the state is sharded.
        save: writes a checkpoint; every process calls it.

    Attributes:
        finished: whether training should stop early because the deciding measurement no longer improves.
        saved_step: the step of the last checkpoint written here; 0 before the first.
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
        evaluate: Validate | None = None,
        save: Callable[[TrainState], None],
    ) -> None:
        self.accelerator = accelerator
        self.settings, self.state, self.log = settings, state, log
        self.main = processes_of(accelerator).is_main
        self.preview, self.validate, self.evaluate, self.save = preview, validate, evaluate, save
        self.micro_batch = settings.max_micro_batch
        self.bad = BadSteps(settings.run_dir / BAD_STEPS, state, settings.max_bad_steps, accelerator)
        self.logging = Periodic(settings.log_every)
        self.finished, self.saved_step = self._is_finished(), 0
        log.note = progress_note(self._rows())
        self.validating = Periodic(settings.validation.every if validate else 0)
        self.evaluating = Periodic(settings.validation.evaluate_every if evaluate else 0)
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
        if self.evaluating.due(step, last):
            self._evaluate(step)
        if self.snapshotting.due(step, last):
            save_snapshot(self.state.average, step, self.settings.run_dir / "averages", writes=self.main)
        if stopping or self.finished or self.saving.due(step, last):
            self.save_now(step)
        if not stopping and self.previewing.due(step, last):
            self._preview(step)

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
        self._record(step, self.validate(self.state))
        if warning := overfitting(self._rows(), keeps_best=self.settings.validation.keep_best is not False):
            self.log.say(f"warning: {warning}")

    def _evaluate(self, step: int) -> None:
        assert self.evaluate is not None
        with self.state.whole():
            measured = self.evaluate(self.state)
        self._record(step, measured)

    def _record(self, step: int, measured: Mapping[str, float | Scores]) -> None:
        """Append a row, compare it with the best step so far, and decide what follows."""
        numbers = {name: value for name, value in measured.items() if not isinstance(value, Scores)}
        self.log.append({"step": step, **numbers, **self._changes(measured)})
        self.log.note = progress_note(self._rows())
        settings = self.settings.validation
        if MEASURES[settings.decider].key not in numbers:
            return
        if settings.keep_best:
            self._keep_best(step)
        self.finished = self._is_finished()
        if self.finished and step < self.settings.num_steps:
            words = "validation loss" if settings.decider == "loss" else settings.decider
            self.log.say(f"no better {words} in {settings.patience} measurements: finished")

    def _changes(self, measured: Mapping[str, float | Scores]) -> dict[str, float]:
        """How far each measurement lies from the best before it. The state keeps the scores of the best."""
        changes: dict[str, float] = {}
        for by, measure in MEASURES.items():
            scores = measured.get(f"{measure.key}_scores")
            if not isinstance(scores, Scores):
                continue
            former = self.state.best_scores.get(by)
            changes |= paired_change(scores, Scores.from_numbers(former) if former else None, by)
            better = former is None or measure.sign * (scores.value - former["value"]) < 0
            if better and math.isfinite(scores.value):
                self.state.best_scores[by] = scores.numbers()
        return changes

    def _keep_best(self, step: int) -> None:
        by = self.settings.validation.decider
        with self.state.whole():
            if self.main:
                keep_best(self.settings.run_dir, self.state.average.current, step, self._rows(), by)

    def _rows(self) -> list[dict[str, Any]]:
        return read_metrics(self.settings.run_dir) if self.main else []

    def _is_finished(self) -> bool:
        """Whether the deciding measurement says so; the main process reads its rows and tells the others."""
        patience, by = self.settings.validation.patience, self.settings.validation.decider
        if not patience:
            return False
        stop = torch.tensor(
            float(self.main and should_stop(self._rows(), patience, by)), device=self.accelerator.device
        )
        return bool(self.accelerator.reduce(stop, "sum") > 0)

    def _preview(self, step: int) -> None:
        path = self.settings.run_dir / "previews" / f"step-{step:06d}.png"
        with self.state.whole():
            # FSDP records each forward pass and prefetches accordingly in the next backward pass; if only some
            # processes ran it, they would wait for each other forever
            if self.main or is_sharded(self.state.module):
                path.parent.mkdir(exist_ok=True)
                with suppress(PreviewStopped):
                    self.preview(self.state, path)

    def save_now(self, step: int) -> None:
        """Write a checkpoint, unless this step has one already.

        Raises:
            UserError: it could not be written.
        """
        if self.saved_step == step:
            return
        self._settle(step)
        self.state.elapsed_sec = self.log.elapsed_sec
        if self.main:
            self.state.history = history_until(self.settings.run_dir, step).model_dump(mode="json")
        self.save(self.state)
        self.saved_step = step
        if self.main:
            prune_best(self.settings.run_dir)

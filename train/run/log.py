"""What a run reports: a live line with loss, speed and time left, `metrics.jsonl`, and the trackers."""

import json
import math
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from ldm.errors import UserError
from ldm.evaluation.curves import METRICS, read_metrics
from ldm.io.files import disk_errors, write_bytes

from ..loop.steps import StepRecord
from .trackers import Tracker

__all__ = ["TrainLog", "drop_rows_after", "duration", "read_metrics"]


def duration(seconds: float) -> str:
    """Seconds as `h:mm:ss`."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"


class TrainLog:
    """The console, metrics file and trackers of one run; silent on every process but the main one.

    A terminal shows a progress bar at the bottom; elsewhere (a file, a job's log) the same line is printed every
    `line_every_sec`. The trackers are closed with the log.

    A row has two times: `elapsed_sec` of the whole run, in which the time of earlier calls up to their last checkpoint
    counts, and `call_sec` of this call.

    Args:
        elapsed_sec: the time of earlier calls.

    Attributes:
        note: shown on the progress line after the loss, such as the validation loss.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        start_step: int,
        num_steps: int,
        main: bool,
        line_every_sec: float = 30,
        elapsed_sec: float = 0.0,
        trackers: Sequence[Tracker] = (),
    ) -> None:
        self.path = run_dir / METRICS
        self.num_steps, self.start_step, self.main = num_steps, start_step, main
        self.line_every_sec, self.trackers = line_every_sec, trackers
        self.console = Console(stderr=True, quiet=not main, soft_wrap=True)
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            console=self.console,
            disable=not (main and sys.stderr.isatty()),
            transient=True,
        )
        self.bar: TaskID | None = None
        self.note = ""
        if main:
            drop_rows_after(self.path, start_step)
        self.elapsed_before_sec = elapsed_sec or last_elapsed_sec(self.path)
        self.started = self.last_line = time.monotonic()

    def __enter__(self) -> "TrainLog":
        self.progress.start()
        self.bar = self.progress.add_task("starting", total=self.num_steps, completed=self.start_step)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.stop()
        for tracker in self.trackers:
            tracker.close()

    @property
    def call_sec(self) -> float:
        """The time since this call began to train."""
        return time.monotonic() - self.started

    @property
    def elapsed_sec(self) -> float:
        """The time of the whole run, over all calls."""
        return self.elapsed_before_sec + self.call_sec

    def say(self, text: str) -> None:
        """Print one line on stderr."""
        self.console.print(text, highlight=False, markup=False)

    def record(self, record: StepRecord) -> None:
        """Log one step: read its metrics from the device, show them, append them to the file.

        The loss of a tenth of the timesteps, `loss_t0` to `loss_t9`, is left out if it is NaN: no sample was in it.

        Raises:
            UserError: the loss is no longer finite.
        """
        values = _without_empty_tenths({name: float(value) for name, value in record.metrics.items()})
        if not math.isfinite(values["loss"]):
            raise UserError(
                f"the loss is {values['loss']} at step {record.step}",
                "rerun from the last checkpoint with a lower optim.learning_rate",
            )
        self.append(
            {
                "step": record.step,
                **values,
                "learning_rate": record.learning_rate,
                "grad_norm": float(record.grad_norm),
            }
        )
        self._show(record.step, values["loss"])

    def working(self, doing: str, done: int, total: int) -> None:
        """Show the progress of work between two steps, such as a preview."""
        line = f"{doing} {done} of {total}"
        if self.bar is not None:
            self.progress.update(self.bar, description=line)
        self._say_sometimes(line)

    def append(self, row: dict[str, Any]) -> None:
        """Append a JSON object, which has a `step`, to metrics.jsonl, and send its numbers to the trackers."""
        if not self.main:
            return
        times = {"elapsed_sec": round(self.elapsed_sec, 1), "call_sec": round(self.call_sec, 1)}
        line = json.dumps({**row, **times})
        with disk_errors(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        numbers = _numbers(row)
        for tracker in self.trackers:
            tracker.log(numbers, row["step"])

    def _show(self, step: int, loss: float) -> None:
        rate = (step - self.start_step) / self.call_sec
        left = duration((self.num_steps - step) / rate)
        shown = (f"loss {loss:.4f}", self.note, f"{rate:.2f} steps/s", f"{left} left")
        line = "  ".join(each for each in shown if each)
        if self.bar is not None:
            self.progress.update(self.bar, completed=step, description=line)
        self._say_sometimes(f"step {step}/{self.num_steps}  {line}", always=step == self.num_steps)

    def _say_sometimes(self, line: str, *, always: bool = False) -> None:
        """Without a bar, print a line if the last one was long ago."""
        now = time.monotonic()
        if self.progress.disable and (always or now - self.last_line > self.line_every_sec):
            self.last_line = now
            self.say(line)


def _without_empty_tenths(values: Mapping[str, float]) -> dict[str, float]:
    return {n: v for n, v in values.items() if not (n.startswith("loss_t") and math.isnan(v))}


def _numbers(row: Mapping[str, Any]) -> dict[str, float]:
    """What trackers plot: the row's numbers without its step."""
    return {n: v for n, v in row.items() if n != "step" and type(v) in (int, float)}


def last_elapsed_sec(path: Path) -> float:
    """The time in the last row of metrics.jsonl, for a checkpoint that has none."""
    times = [
        row["elapsed_sec"] for row in read_metrics(path) if isinstance(row.get("elapsed_sec"), int | float)
    ]
    return float(times[-1]) if times else 0.0


def drop_rows_after(path: Path, step: int) -> None:
    """Remove the rows of steps that a resumed run repeats, and a last line left incomplete when a run was killed."""
    if path.is_file():
        rows = [json.dumps(row) + "\n" for row in read_metrics(path) if row["step"] <= step]
        write_bytes(path, "".join(rows).encode())

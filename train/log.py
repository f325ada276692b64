"""What a run tells: a live line with loss, rate and time left, and `metrics.jsonl`."""

import json
import math
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from ldm.errors import UserError

from .loop import StepRecord


def duration(seconds: float) -> str:
    """Seconds as `h:mm:ss`."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"


class TrainLog:
    """The console and metrics file of one run; silent on every rank but the first.

    On a terminal a progress bar lives at the bottom; elsewhere (a file, a job's log) the same line is printed every
    `line_every_sec`.
    """

    def __init__(
        self, run_dir: Path, *, start_step: int, num_steps: int, main: bool, line_every_sec: float = 30
    ) -> None:
        self.path = run_dir / "metrics.jsonl"
        self.num_steps, self.start_step, self.main = num_steps, start_step, main
        self.line_every_sec = line_every_sec
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
        self.started = self.last_line = time.monotonic()
        if main:
            _drop_rows_after(self.path, start_step)

    def __enter__(self) -> "TrainLog":
        self.progress.start()
        self.bar = self.progress.add_task("starting", total=self.num_steps, completed=self.start_step)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.stop()

    def say(self, text: str) -> None:
        """One line for the person watching."""
        self.console.print(text, highlight=False, markup=False)

    def record(self, record: StepRecord) -> None:
        """Log one step: read its metrics off the device, show them, append them to the file.

        Raises:
            UserError: the loss is no longer finite.
        """
        values = {name: float(value) for name, value in record.metrics.items()}
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

    def append(self, row: dict[str, Any]) -> None:
        """Add one JSON object to metrics.jsonl."""
        if self.main:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(
                    json.dumps({**row, "elapsed_sec": round(time.monotonic() - self.started, 1)}) + "\n"
                )

    def _show(self, step: int, loss: float) -> None:
        rate = (step - self.start_step) / (time.monotonic() - self.started)
        line = f"loss {loss:.4f}  {rate:.2f} steps/s  {duration((self.num_steps - step) / rate)} left"
        if self.bar is not None:
            self.progress.update(self.bar, completed=step, description=line)
        now = time.monotonic()
        if self.progress.disable and (now - self.last_line > self.line_every_sec or step == self.num_steps):
            self.last_line = now
            self.say(f"step {step}/{self.num_steps}  {line}")


def _drop_rows_after(path: Path, step: int) -> None:
    """Forget logged steps that a resumed run will do again."""
    if path.is_file():
        rows = [
            line for line in path.read_text(encoding="utf-8").splitlines() if json.loads(line)["step"] <= step
        ]
        path.write_text("".join(row + "\n" for row in rows), encoding="utf-8")

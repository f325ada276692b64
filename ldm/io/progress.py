"""Progress on stderr: a live bar on a terminal, an occasional line elsewhere."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn
from rich.progress import TimeRemainingColumn as TimeLeft
from rich.text import Text


class RateColumn(ProgressColumn):
    """Units per second, averaged over the last few."""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self.unit = unit

    def render(self, task: Task) -> Text:
        """The rate as text, or an empty string before the first unit is done."""
        speed = task.finished_speed or task.speed
        return Text(f"{speed:.1f} {self.unit}s/s" if speed else "")


class WorkBar:
    """A progress bar with a description of the current work.

    Args:
        unit: what is counted, in the singular.
        line_every_sec: seconds between lines if stderr is not a terminal.
        hidden: show nothing.
    """

    def __init__(self, unit: str, *, line_every_sec: float = 30.0, hidden: bool = False) -> None:
        console = Console(stderr=True)
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            RateColumn(unit),
            TimeLeft(),
        )
        self.progress = Progress(
            *columns, console=console, disable=hidden or not is_watched(console), transient=True
        )
        self.task = self.progress.add_task("", total=None)
        self.console, self.unit, self.line_every_sec, self.hidden = console, unit, line_every_sec, hidden
        self.last_line: float | None = None

    def say(self, text: str) -> None:
        """Show a description of the current work beside the bar."""
        self.progress.update(self.task, description=text)

    def show(self, done: int, total: int) -> None:
        """Show how much is done."""
        self.progress.update(self.task, completed=done, total=total)
        now = time.monotonic()
        self.last_line = now if self.last_line is None else self.last_line
        if not self.hidden and not is_watched(self.console) and now - self.last_line >= self.line_every_sec:
            self.last_line = now
            print(f"{self.unit} {done} of {total}", file=self.console.file, flush=True)


def is_watched(console: Console | None = None) -> bool:
    """Whether somebody sees a bar: stderr is a terminal, or this is a notebook."""
    console = console or Console(stderr=True)
    return console.is_terminal or console.is_jupyter


@contextmanager
def work_bar(unit: str, *, hidden: bool = False) -> Iterator[WorkBar]:
    """A bar that is shown while the block runs and then disappears."""
    bar = WorkBar(unit, hidden=hidden)
    with bar.progress:
        yield bar

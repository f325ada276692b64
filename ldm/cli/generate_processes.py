"""`ldm generate --num-processes N`: several processes, each with its share; one bar, one line for a mistake.

The first process only looks on. It writes the order into a folder of its own, starts this module N times, and reads
what each writes into a file there: lines of JSON, see `_Report`.
"""

import json
import os
import signal
import sys
import tempfile
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import typer

from ldm.cli.messages import own_warnings, say_warning
from ldm.errors import UserError

if TYPE_CHECKING:
    from ldm.cli.processes import Failure
    from ldm.generation.job import GenerationJob
    from ldm.io.progress import WorkBar


def make_in_processes(order: "GenerationJob", num_processes: int) -> None:
    """Make the pictures of an order in several processes.

    Raises:
        UserError: a process was ended from outside.
        typer.Exit: a process failed, and has told why.
        KeyboardInterrupt: the user stopped them all; it says how much is done.
    """
    from ldm.cli.processes import run_apart
    from ldm.cli.programs import find_home
    from ldm.io.progress import work_bar

    command = [sys.executable, "-m", "ldm.cli.generate_processes"]
    with tempfile.TemporaryDirectory(prefix="ldm-generate-") as name:
        folder = Path(name)
        order.write(folder)
        with work_bar("step") as bar:
            watch = _Watch(folder, num_processes, bar)
            environment = find_home().environment(os.environ)
            failure = run_apart([*command, name], environment, num_processes, on_poll=watch.look)
            watch.look()
    if failure:
        _tell(
            failure,
            num_processes,
            f"{watch.num_written} of {count_of(order)} written to {order.target.folder}",
        )


def count_of(order: "GenerationJob") -> str:
    """Such as `12 pictures`."""
    return f"{len(order.pictures)} picture{'s' if len(order.pictures) > 1 else ''}"


def _tell(failure: "Failure", num_processes: int, written: str) -> None:
    """End as one process would: a mistake and a stop have a line, and what should not happen all its words."""
    if failure.code in (128 + signal.SIGINT, 128 + signal.SIGTERM):
        raise KeyboardInterrupt(f"stopped; {written}")
    which = f"process {failure.rank} of {num_processes}"
    if failure.code > 128:
        raise UserError(
            f"{which} was ended by signal {failure.code - 128}; {written}",
            "if memory ran out, use fewer processes or a smaller --batch-size; --resume goes on",
        )
    if failure.code != 2:
        typer.echo(f"{which} failed:", err=True)
    typer.echo(failure.words, err=True, nl=False)
    raise typer.Exit(failure.code)


class _Watch:
    """What the processes have reported so far, on one bar; each warning is said once.

    Attributes:
        num_written: pictures, of all processes.
    """

    def __init__(self, folder: Path, num_processes: int, bar: "WorkBar") -> None:
        self._files = [folder / _report_name(rank) for rank in range(num_processes)]
        self._num_read = [0] * num_processes
        self._latest: list[dict[str, Any]] = [{} for _ in range(num_processes)]
        self._warned: set[str] = set()
        self._bar = bar
        self.num_written = 0

    def look(self) -> None:
        """Read what is new."""
        for rank, file in enumerate(self._files):
            for row in self._new_rows(rank, file):
                self._latest[rank] |= row
                self._warn(row.get("warning"))
        self.num_written = sum(latest.get("num_written", 0) for latest in self._latest)
        # the total is known once all have begun
        if all("total" in latest for latest in self._latest):
            done, total = (sum(latest[name] for latest in self._latest) for name in ("done", "total"))
            self._bar.show(done, total)
        self._bar.say(next((latest["say"] for latest in self._latest if "say" in latest), ""))

    def _new_rows(self, rank: int, file: Path) -> list[dict[str, Any]]:
        """The lines since the last look; one that is half written is left for the next."""
        if not file.exists():
            return []
        with file.open("rb") as stream:
            stream.seek(self._num_read[rank])
            text = stream.read()
        whole = text[: text.rfind(b"\n") + 1]
        self._num_read[rank] += len(whole)
        return [json.loads(line) for line in whole.splitlines()]

    def _warn(self, text: str | None) -> None:
        if text is not None and text not in self._warned:
            self._warned.add(text)
            say_warning(text)


class _Report:
    """What one process tells, a JSON object a line: `say`, `warning`, `done` and `total` in steps, `num_written`."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._num_written = 0

    def _tell(self, **row: Any) -> None:
        self._stream.write(json.dumps(row).encode() + b"\n")
        self._stream.flush()

    def say(self, text: str) -> None:
        self._tell(say=text)

    def warn(self, text: str) -> None:
        self._tell(warning=text)

    def show(self, done: int, total: int) -> None:
        self._tell(done=done, total=total)

    def count(self) -> None:
        """One more picture is written."""
        self._num_written += 1
        self._tell(num_written=self._num_written)


def _report_name(rank: int) -> str:
    return f"report-{rank}.jsonl"


def _make(folder: Path, rank: int, num_processes: int, report: _Report) -> None:
    from ldm.generation.job import Share, read_job, run_rank

    share = Share(rank, num_processes, folder)
    with own_warnings(report.warn):
        for _ in run_rank(read_job(folder), share, say=report.say, on_progress=report.show):
            report.count()


def main(folder: Path, rank: int, num_processes: int) -> int:
    """One process of several: make its share of the order in a folder; returns the exit code."""
    try:
        with (folder / _report_name(rank)).open("ab") as stream:
            _make(folder, rank, num_processes, _Report(stream))
    except UserError as error:
        print("error: " + " ".join(str(error).split("\n")), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # an end in order: no file is left half-written
    sys.exit(main(Path(sys.argv[1]), int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])))

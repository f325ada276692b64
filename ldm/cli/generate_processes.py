"""`ldm generate --num-processes N`: several processes, each with its share; one progress bar, one line for an error.

The first process only watches. It writes the job into a temporary folder, starts this module N times, and reads the
file that each of them writes there: lines of JSON, see `Report`.
"""

import json
import os
import signal
import sys
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol

import typer

from ldm.errors import UserError
from ldm.io.messages import own_warnings, say_error, say_warning

if TYPE_CHECKING:
    from ldm.cli.processes import Failure
    from ldm.generation.job import GenerationJob
    from ldm.io.progress import WorkBar


def make_in_processes(job: "GenerationJob", num_processes: int, *, quiet: bool = False) -> None:
    """Make the images of a job in several processes.

    Args:
        quiet: show neither a bar nor warnings.

    Raises:
        UserError: a process was killed.
        typer.Exit: a process failed, and has said why.
        KeyboardInterrupt: the user stopped them all; the message says how much is done.
    """
    failure, watch = run_watched(job, "ldm.cli.generate_processes", num_processes, "step", quiet=quiet)
    if failure:
        end_as_one(
            failure,
            num_processes,
            f"{watch.num_written} of {count_of(job)} written to {job.target.folder}",
            "if memory ran out, use fewer processes or a smaller --batch-size; --resume continues",
        )


class WrittenJob(Protocol):
    """A job that the processes read from a folder."""

    def write(self, folder: Path) -> None: ...


def run_watched(
    job: WrittenJob, module: str, num_processes: int, unit: str, *, quiet: bool
) -> "tuple[Failure | None, Watch]":
    """Run a module in several processes, each with its share of a job, and show one bar of all.

    Args:
        module: run as a program, with the folder of the job.
        unit: of the bar.
    """
    from ldm.cli.processes import run_apart
    from ldm.cli.programs import find_home
    from ldm.io.progress import work_bar
    from ldm.io.temporary import working_folder

    with working_folder(module.rpartition(".")[2]) as folder:
        job.write(folder)
        with work_bar(unit, hidden=quiet) as bar:
            watch = Watch(folder, num_processes, bar, quiet=quiet)
            command = [sys.executable, "-m", module, str(folder)]
            environment = find_home().environment(os.environ)
            failure = run_apart(command, environment, num_processes, on_poll=watch.read)
            watch.read()
    return failure, watch


def count_of(job: "GenerationJob") -> str:
    """Such as `12 images`."""
    return f"{len(job.images)} image{'s' if len(job.images) > 1 else ''}"


def end_as_one(failure: "Failure", num_processes: int, written: str, hint: str) -> None:
    """End as one process would: an error and an interruption have one line, a crash its whole traceback.

    Args:
        written: what is done so far.
        hint: what to do if a process was killed.
    """
    if failure.code in (128 + signal.SIGINT, 128 + signal.SIGTERM):
        raise KeyboardInterrupt(f"stopped; {written}")
    which = f"process {failure.rank} of {num_processes}"
    if failure.code > 128:
        raise UserError(f"{which} was killed by signal {failure.code - 128}; {written}", hint)
    if failure.code != 2:
        typer.echo(f"{which} failed:", err=True)
    typer.echo(failure.words, err=True, nl=False)
    raise typer.Exit(failure.code)


class Watch:
    """What the processes have reported so far, on one bar; each warning is shown once.

    Attributes:
        num_written: images, of all processes.
    """

    def __init__(self, folder: Path, num_processes: int, bar: "WorkBar", *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._files = [folder / report_name(rank) for rank in range(num_processes)]
        self._num_read = [0] * num_processes
        self._latest: list[dict[str, Any]] = [{} for _ in range(num_processes)]
        self._warned: set[str] = set()
        self._bar = bar
        self.num_written = 0

    def read(self) -> None:
        """Read new reports, and update the bar."""
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
        """The lines since the last call; a line that is half written is left for the next."""
        if not file.exists():
            return []
        with file.open("rb") as stream:
            stream.seek(self._num_read[rank])
            text = stream.read()
        complete = text[: text.rfind(b"\n") + 1]
        self._num_read[rank] += len(complete)
        return [json.loads(line) for line in complete.splitlines()]

    def _warn(self, text: str | None) -> None:
        if text is not None and not self._quiet and text not in self._warned:
            self._warned.add(text)
            say_warning(text)


class Report:
    """What one process reports, a JSON object a line: `say`, `warning`, `done` and `total` in steps, `num_written`."""

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
        """One more image is written."""
        self._num_written += 1
        self._tell(num_written=self._num_written)


def report_name(rank: int) -> str:
    """The file that a process reports in."""
    return f"report-{rank}.jsonl"


def _make(folder: Path, rank: int, num_processes: int, report: Report) -> None:
    from ldm.generation.job import Share, read_job, run_rank

    share = Share(rank, num_processes, folder)
    with own_warnings(report.warn):
        for _ in run_rank(read_job(folder), share, say=report.say, on_progress=report.show):
            report.count()


def main(folder: Path, rank: int, num_processes: int) -> int:
    """One process of several: make its share of the job in a folder; returns the exit code."""
    try:
        with (folder / report_name(rank)).open("ab") as stream:
            _make(folder, rank, num_processes, Report(stream))
    except UserError as error:
        say_error(str(error))
        return 2
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # an orderly end: no file is left half-written
    sys.exit(main(Path(sys.argv[1]), int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])))

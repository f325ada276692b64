"""`ldm forget`: a run as it would be if it never had some of its samples. The training package does it."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from ldm.cli.confirm import confirm
from ldm.cli.printer import Printer, reporting

STDERR = 2
Sample = Annotated[
    list[str],
    typer.Option(
        "--sample", metavar="ID", help="The id of a sample, as in data_report.json; may be repeated."
    ),
]
NewRun = Annotated[
    Path | None,
    typer.Option("--run-dir", metavar="NEW_DIR", help="The new run's directory.  [default: RUN-without]"),
]
NumProcesses = Annotated[
    int, typer.Option(min=1, metavar="N", help="As many processes as the run used, one per GPU.")
]


@reporting
def forget(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="The directory of a run with data.order = keyed.")
    ],
    sample: Sample,
    run_dir: NewRun = None,
    num_processes: NumProcesses = 1,
    plan: Annotated[bool, typer.Option("--plan", help="Only print what it would cost.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Start without asking.")] = False,
    *,
    printer: Printer,
) -> None:
    """Train again without some samples, from the last checkpoint before their first use.

    The new run equals, to the last bit, one that never had them. RUN is not touched. If it is interrupted,
    `ldm train NEW_DIR/config.yaml` resumes it.
    """
    new_run = run_dir or run.with_name(f"{run.name}-without")
    call = [str(run), str(new_run), *sample]
    if plan or not yes:
        facts = _prepare(["plan", *call], quiet=printer.quiet)
        if plan:
            printer.result(facts, *_lines(facts))
            return
        for line in _lines(facts):
            printer.note(line)
        confirm(f"Train {facts['num_steps']} steps in {new_run}?", verb="start", done="started")
    facts = _prepare(["write", *call], quiet=printer.quiet)
    for line in _lines(facts) if yes else ():
        printer.note(line)
    _train(new_run / "config.yaml", num_processes)
    printer.result(facts, f"forgotten: {new_run}")


def _prepare(arguments: Sequence[str], *, quiet: bool) -> dict[str, Any]:
    """Plan the replay, or also write the new run's directory; returns what it takes.

    Raises:
        typer.Exit: a mistake, which is printed.
    """
    from ldm.cli.programs import find_home

    home = find_home()
    command = [sys.executable, "-m", f"{home.package}.run.forget", *arguments]
    errors = subprocess.PIPE if quiet else None
    done = subprocess.run(command, env=home.environment(os.environ), stdout=subprocess.PIPE, stderr=errors)
    if done.returncode:
        lines = (done.stderr or b"").decode(errors="replace").splitlines()
        typer.echo("\n".join(line for line in lines if line.startswith("error:")), err=True, nl=bool(lines))
        raise typer.Exit(done.returncode)
    facts: dict[str, Any] = json.loads(done.stdout.decode().splitlines()[-1])
    return facts


def _lines(facts: Mapping[str, Any]) -> Iterator[str]:
    many = "1 sample is" if facts["num_samples"] == 1 else f"{facts['num_samples']} samples are"
    yield f"{many} first used in step {facts['first_used_step']}"
    time = "" if facts["elapsed_sec"] is None else f", about {_duration(facts['elapsed_sec'])}"
    yield f"{facts['num_steps']} steps to train again, from the checkpoint of step {facts['from_step']}{time}"
    yield from (f"note: {note}" for note in facts["notes"])


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min {rest} s"


def _train(config: Path, num_processes: int) -> None:
    """Train in the new directory, with what the run prints on stderr."""
    from ldm.cli.processes import run_processes
    from ldm.cli.programs import find_home

    home = find_home()
    command = [sys.executable, "-m", f"{home.package}.run.start", "denoiser", str(config)]
    if code := run_processes(command, home.environment(os.environ), num_processes, stdout=STDERR):
        raise typer.Exit(code)

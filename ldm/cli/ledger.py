"""`ldm ledger`: which of a run's samples hurt. The training package measures, in a process of its own."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from ldm.cli.printer import Printer, reporting
from ldm.errors import UserError


@reporting
def ledger(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="The directory of a run of the program denoiser.")
    ],
    output: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Where ledger.json and ledger.html go.")
    ] = Path("ledger"),
    drop_file: Annotated[
        Path | None,
        typer.Option(
            "--drop-list",
            metavar="FILE.csv",
            help="Write the ids that training should leave out, each with the reason.",
        ),
    ] = None,
    num_timesteps: Annotated[
        int, typer.Option(min=2, metavar="K", help="Noise levels at which each sample is measured.")
    ] = 8,
    num_others: Annotated[
        int,
        typer.Option(min=1, metavar="M", help="Captions of other samples that each image is compared with."),
    ] = 2,
    *,
    printer: Printer,
) -> None:
    """Rank the samples of a run: captions that do not fit, images learned by heart or never, near duplicates.

    Each sample's loss is measured with the newest checkpoint at fixed noise levels with fixed noise: with its own
    caption, with captions of other samples, and at the oldest checkpoint that the run keeps.
    """
    from ldm.cli.programs import find_home

    if drop_file is not None and os.path.lexists(drop_file):
        raise UserError(f"--drop-list {drop_file} exists already", "name another file, or move it away")
    home = find_home()
    command = [sys.executable, "-m", f"{home.package}.run.ledger", str(run), str(output)]
    command += [str(num_timesteps), str(num_others), *([str(drop_file)] if drop_file else [])]
    errors = subprocess.PIPE if printer.quiet else None
    done = subprocess.run(command, env=home.environment(os.environ), stdout=subprocess.PIPE, stderr=errors)
    if done.returncode:
        lines = (done.stderr or b"").decode(errors="replace").splitlines()
        typer.echo("\n".join(line for line in lines if line.startswith("error:")), err=True, nl=bool(lines))
        raise typer.Exit(done.returncode)
    facts = json.loads(done.stdout.decode().splitlines()[-1])
    printer.result(facts, *_lines(facts), f"page: {output / 'ledger.html'}")
    if drop_file is not None:
        printer.lines(f"to leave out: {drop_file}")


def _lines(facts: Mapping[str, Any]) -> Iterator[str]:
    yield f"{facts['num_samples']} samples at step {facts['step']}"
    for reason, number in facts["flagged"].items():
        yield f"{reason}: {number}"
    if gap := facts["held_out_gap"]:
        yield f"held out minus trained: {gap['gap']:+.4f} +- {gap['stderr']:.4f}"

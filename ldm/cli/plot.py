"""`ldm plot`: draw the curves of training runs."""

import os
from pathlib import Path
from typing import Annotated

import typer

from ldm.cli.printer import Printer, reporting
from ldm.errors import UserError


@reporting
def plot(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN...", help="Directories of training runs; several are overlaid."),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="The PNG to write.  [default for one run: RUN/curves.png]",
            show_default=False,
        ),
    ] = None,
    *,
    printer: Printer,
) -> None:
    """Draw the curves of training runs into a PNG.

    Loss, validation loss, learning rate, and loss by tenth of the timesteps, as far as the runs logged them. Prints
    the path of the PNG.
    """
    from ldm.evaluation.curves import METRICS, draw_curves, read_metrics

    for run in runs:
        if not (run / METRICS).is_file():
            raise UserError(f"{run} has no {METRICS}", "name the run_dir of a training run")
    if output is None and len(runs) > 1:
        raise UserError("several runs but no --output", "name the PNG to write, such as --output curves.png")
    if output is not None and output.suffix.lower() != ".png":
        raise UserError(f"--output {output} is not a PNG", "name a file that ends in .png")
    output = free_output(output, runs[0] / "curves.png")
    names = run_names(runs)
    draw_curves({name: read_metrics(run) for name, run in zip(names, runs, strict=True)}, output)
    printer.result({"output": str(output), "runs": [str(run) for run in runs]}, output)


def free_output(output: Path | None, default: Path) -> Path:
    """Where to draw: `output`, or `default`, numbered if it is taken. Only curves of ours are replaced.

    Raises:
        UserError: `output` is another file.
    """
    from ldm.evaluation.curves import CURVES_CHUNK
    from ldm.io.png import is_written_here

    wanted = output or default
    number, free = 1, wanted
    while os.path.lexists(free) and not is_written_here(free, CURVES_CHUNK):
        if output is not None:
            raise UserError(
                f"--output {output} exists already, and was not drawn by this program", "name another file"
            )
        number += 1
        free = wanted.with_name(f"{wanted.stem}-{number}.png")
    return free


def run_names(runs: list[Path]) -> list[str]:
    """The name of each run in the legend: its folder's name, preceded by as many parent folders as tell all apart.

    Raises:
        UserError: a run is given twice.
    """
    parts = [run.resolve().parts for run in runs]
    if len(set(parts)) < len(parts):
        raise UserError("a run is given twice", "name each run once")
    length = 1
    while len({each[-length:] for each in parts}) < len(parts):
        length += 1
    return ["/".join(each[-length:]) for each in parts]

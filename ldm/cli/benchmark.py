"""`ldm benchmark`: measure how fast `ldm` is on this machine, compared with plain diffusers, in a separate process."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ldm.cli.programs import Home

WORKS = ("startup", "generate", "decode", "train", "upkeep", "cache", "scaling", "tasks", "all")


def benchmark(
    work: Annotated[
        str,
        typer.Argument(
            metavar="WORK",
            help="generate, train, startup, decode, upkeep (optimizer and weight average), cache, scaling, tasks "
            "(training to inpaint, with and without the cache), or all.",
        ),
    ],
    model: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="For generate: measure only this model (a folder, a run or a Hub id), on each engine and preset.",
        ),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Fewer steps and samples; `all` takes a quarter of an hour.")
    ] = False,
    rounds: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Samples per side.  [default: 9, or 5 with --quick]"),
    ] = None,
    device: Annotated[str, typer.Option(metavar="NAME", help="What to measure: cpu or cuda.")] = "cpu",
    script: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="For train: diffusers' published train_text_to_image.py, instead of our loop with the same calls.",
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(metavar="FILE.json", help="Save the result with every sample.")
    ] = None,
) -> None:
    """Measure speed on this machine, against plain diffusers.

    Results are ratios of two sides that take turns; samples disturbed by other programs are discarded. Close other
    programs first: with fewer than five clean samples per side there is no verdict.
    """
    from ldm.cli.processes import run_processes
    from ldm.cli.programs import find_home
    from ldm.errors import unknown_name

    for name, value, choices in (("benchmark", work, WORKS), ("device", device, ("cpu", "cuda"))):
        if value not in choices:
            raise unknown_name(name, value, choices)
    given = {"model": model, "rounds": rounds, "device": device, "script": script, "output": output}
    options = [f"--{name}={value}" for name, value in given.items() if value is not None]
    module, environment = _benchmarks(find_home())
    command = [sys.executable, "-m", module, work, *options, *(["--quick"] if quick else [])]
    if code := run_processes(command, environment):
        raise typer.Exit(code)


def _benchmarks(home: "Home") -> tuple[str, dict[str, str]]:
    """The benchmarks' module and the environment in which it is found, in a checkout or installed."""
    environment = home.environment(os.environ)
    if home.package == "ldm_train":
        return "ldm_benchmark", environment
    search = [str(home.root / "scripts"), environment["PYTHONPATH"]]
    return "benchmark", environment | {"PYTHONPATH": os.pathsep.join(search)}

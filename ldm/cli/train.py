"""`ldm train`: start a training program as a process of its own, so that nothing here imports it."""

import os
import sys
from typing import Annotated

import typer


def train(
    config: Annotated[
        str,
        typer.Argument(
            metavar="CONFIG",
            help="A YAML file whose `program:` is autoencoder, text_encoder or denoiser; or the name of "
            "one that comes with this program, such as emoji/denoiser.",
        ),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE...",
            help="Settings in place of the file's, such as optim.learning_rate=2e-4 data.path=photos.",
        ),
    ] = None,
    num_processes: Annotated[
        int,
        typer.Option(
            min=1,
            metavar="N",
            help="Processes that share each step's samples, one a GPU; the result is that of one process.",
        ),
    ] = 1,
) -> None:
    """Train a model, or go on where the same command stopped.

    Ctrl-C saves the state and stops; a second one stops at once.
    """
    from ldm.cli.processes import run_processes
    from ldm.cli.programs import find_config, find_home, program_of

    home, settings = find_home(), overrides or []
    path = find_config(config, home)
    module = f"{home.package}.{program_of(path, settings)}"
    command = [sys.executable, "-m", module, str(path), *settings]
    code = run_processes(command, home.environment(os.environ), num_processes)
    if code:
        raise typer.Exit(code)

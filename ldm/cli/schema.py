"""`ldm schema`: what may stand in a configuration, for editors and programs."""

import os
import sys
from typing import Annotated

import typer


def schema(
    program: Annotated[
        str | None,
        typer.Argument(
            metavar="[PROGRAM]",
            help="autoencoder, text_encoder or denoiser; left out: any, by its `program:`.",
        ),
    ] = None,
) -> None:
    """Print the JSON schema of a configuration.

    Editors that know a YAML file's schema complete its keys and mark its mistakes: save it with
    `ldm schema > ldm.schema.json`.
    """
    from ldm.cli.processes import run_processes
    from ldm.cli.programs import PROGRAMS, find_home
    from ldm.errors import unknown_name

    if program is not None and program not in PROGRAMS:
        raise unknown_name("program", program, PROGRAMS)
    home = find_home()
    command = [sys.executable, "-m", f"{home.package}.settings.schema", *([program] if program else [])]
    code = run_processes(command, home.environment(os.environ))
    if code:
        raise typer.Exit(code)

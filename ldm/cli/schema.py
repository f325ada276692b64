"""`ldm schema`: the JSON schema of configurations, for editors and other programs."""

import os
import sys
from typing import Annotated

import typer


def schema(
    program: Annotated[
        str | None,
        typer.Argument(
            metavar="[PROGRAM]",
            help="autoencoder, text_encoder or denoiser.  [default: all of them, told apart by `program:`]",
        ),
    ] = None,
) -> None:
    """Print the JSON schema of a configuration.

    With it, editors complete the keys of a YAML file and mark mistakes. Save it with
    `ldm schema > ldm.schema.json`.
    """
    from ldm.cli.processes import run_processes
    from ldm.cli.programs import find_home
    from ldm.errors import unknown_name

    home = find_home()
    if program is not None and program not in home.programs:
        raise unknown_name("program", program, home.programs)
    command = [sys.executable, "-m", f"{home.package}.settings.schema", *([program] if program else [])]
    code = run_processes(command, home.environment(os.environ))
    if code:
        raise typer.Exit(code)

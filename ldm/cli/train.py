"""`ldm train`: start a training program as a process of its own, so that nothing here imports it."""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
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
    fork: Annotated[
        Path | None,
        typer.Option(
            metavar="NEW_DIR",
            help="A new run in NEW_DIR from the weights of the configuration's run: its settings may differ.",
        ),
    ] = None,
    plan: Annotated[
        bool,
        typer.Option(
            "--plan",
            help="Say what the run would be, and train nothing: samples, steps, parameters, and memory, time and "
            "disk as a few real steps show them. For the program denoiser.",
        ),
    ] = False,
) -> None:
    """Train a model, or go on where the same command stopped.

    Ctrl-C saves the state and stops; a second one stops at once.
    """
    from ldm.cli.processes import run_processes
    from ldm.cli.programs import find_config, find_home, program_of

    home, settings = find_home(), overrides or []
    path = find_config(config, home)
    if fork is not None:
        settings = [*settings, *fork_overrides(path, settings, fork)]
    module = f"{home.package}.{program_of(path, settings)}"
    command = [sys.executable, "-m", module, str(path), *settings, *(["--plan"] if plan else [])]
    code = run_processes(command, home.environment(os.environ), num_processes)
    if code:
        raise typer.Exit(code)


def fork_overrides(config: Path, overrides: Sequence[str], new_dir: Path) -> list[str]:
    """The settings that make a run in `new_dir` start from the weights of the run that a configuration names.

    Raises:
        UserError: it names none.
    """
    from ldm.config import read_yaml
    from ldm.errors import UserError

    given = [text.partition("=")[2] for text in overrides if text.partition("=")[0].strip() == "run_dir"]
    old = given[-1] if given else json.dumps(read_yaml(config).get("run_dir"))
    if old == "null":
        raise UserError(f"{config} has no `run_dir:` to fork from", "write run_dir: OLD_RUN")
    return [f"fork_from={old}", f"run_dir={json.dumps(str(new_dir))}"]

"""`ldm train`: start a training program in its own process, so that nothing here imports it."""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

Config = Annotated[
    str,
    typer.Argument(
        metavar="CONFIG",
        help="A YAML file whose `program:` is autoencoder, text_encoder or denoiser, or the name of a bundled "
        "one, such as emoji/denoiser.",
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE...",
        help="Settings that override the file's, such as optim.learning_rate=2e-4 data.path=photos.",
    ),
]
NumProcesses = Annotated[
    int,
    typer.Option(
        min=1,
        metavar="N",
        help="Split each step's samples over this many processes, one per GPU. The result is the same as with "
        "one process.",
    ),
]
Fork = Annotated[
    Path | None,
    typer.Option(
        metavar="NEW_DIR",
        help="Start a new run in NEW_DIR from the weights of the configuration's run. Its settings may differ.",
    ),
]
Plan = Annotated[
    bool,
    typer.Option(
        "--plan",
        help="Train nothing; print what the run would do and cost: samples, steps and parameters, and memory, "
        "time and disk measured on a few real steps. Only for the program denoiser.",
    ),
]


def train(
    config: Config,
    overrides: Overrides = None,
    num_processes: NumProcesses = 1,
    fork: Fork = None,
    plan: Plan = False,
) -> None:
    """Train a model, or resume where the same command stopped.

    Ctrl-C saves a checkpoint and stops; a second Ctrl-C stops at once. SIGTERM, SIGUSR1 and SIGUSR2 do the same.
    """
    from ldm.cli.processes import run_processes
    from ldm.cli.programs import find_config, find_home, program_of

    home, settings = find_home(), overrides or []
    path = find_config(config, home)
    if fork is not None:
        settings = [*settings, *fork_overrides(path, settings, fork)]
    program, environment = program_of(path, settings, home.programs), home.environment(os.environ)
    check = [sys.executable, "-m", f"{home.package}.settings.check_settings", program, str(path), *settings]
    if code := run_processes(check, environment):  # a mistyped setting, told before the libraries are loaded
        raise typer.Exit(code)
    command = [sys.executable, "-m", f"{home.package}.run.start", program, str(path), *settings]
    command += ["--plan"] if plan else []
    code = run_processes(command, environment, num_processes)
    if code:
        raise typer.Exit(code)


def fork_overrides(config: Path, overrides: Sequence[str], new_dir: Path) -> list[str]:
    """The settings with which a run in `new_dir` starts from the weights of the run that a configuration names.

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

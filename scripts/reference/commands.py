"""The page of commands, from the command line itself."""

import inspect
from collections.abc import Iterator
from typing import Any

from typer.main import get_command

from ldm.cli.app import app

from .markdown import code, page, table


def commands_page() -> str:
    """Every command with its help, arguments and options."""
    sections = [
        section for name, command in all_commands("ldm", get_command(app)) for section in entry(name, command)
    ]
    intro = "Every command also has `--help`. Mistakes end with one line on stderr and exit code 2."
    return page("Commands", intro, *sections)


def all_commands(name: str, command: Any) -> Iterator[tuple[str, Any]]:
    """The commands below a group, by their full names, in the order of the help."""
    if not hasattr(command, "commands"):
        yield name, command
        return
    for word, below in command.commands.items():
        if not below.hidden:
            yield from all_commands(f"{name} {word}", below)


def entry(name: str, command: Any) -> Iterator[str]:
    """A command's heading, usage, help and tables of parameters."""
    ctx = command.context_class(command, info_name=name)
    yield f"## {name}"
    yield f"```\n{' '.join([name, *command.collect_usage_pieces(ctx)])}\n```"
    yield inspect.cleandoc(command.help or "")
    for kind in ("argument", "option"):
        records = [
            param.get_help_record(ctx)
            for param in command.params
            if param.param_type_name == kind and not getattr(param, "hidden", False)
        ]
        rows = [(code(spelling), text) for spelling, text in filter(None, records)]
        if rows:
            yield table((kind, ""), rows)

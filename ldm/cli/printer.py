"""What a command reports: results on stdout, as text or as JSON; progress and warnings on stderr, or neither."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import wraps
from typing import Annotated, Any

import typer

from ldm.io.messages import own_warnings, visible_json

AsJson = Annotated[
    bool, typer.Option("--json", help="Print the result as one JSON object, with numbers as numbers.")
]
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="Print errors only: no results, progress or warnings.")
]


@dataclass(frozen=True)
class Printer:
    """Prints what a command reports.

    Attributes:
        as_json: print results as JSON instead of text.
        quiet: print errors only; of the results the JSON is printed if `as_json`.
    """

    as_json: bool = False
    quiet: bool = False

    def result(self, facts: Mapping[str, Any], *lines: object) -> None:
        """Print the result of a command.

        Args:
            facts: all of it, ready for JSON.
            lines: the same as text, as far as `lines` has not printed it before.
        """
        self.lines(*lines)
        if self.as_json:
            typer.echo(visible_json(facts))

    def lines(self, *lines: object) -> None:
        """Print a part of the result as soon as it is known. JSON has it only at the end."""
        if not (self.as_json or self.quiet):
            for line in lines:
                typer.echo(line)

    def note(self, line: str) -> None:
        """Print progress, or something else that is not a result, to stderr."""
        if not self.quiet:
            typer.echo(line, err=True)


def reporting(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options --json and --quiet in place of its parameter `printer`, and hide warnings if quiet."""

    @wraps(command)
    def run(*arguments: Any, as_json: bool, quiet: bool, **options: Any) -> None:
        with own_warnings(*([_ignore] if quiet else [])):
            command(*arguments, printer=Printer(as_json=as_json, quiet=quiet), **options)

    signature = inspect.signature(command)
    options = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=annotation)
        for name, annotation in (("as_json", AsJson), ("quiet", Quiet))
    ]
    own = [each for each in signature.parameters.values() if each.name != "printer"]
    named: Any = run
    named.__signature__ = signature.replace(parameters=[*own, *options])
    named.__annotations__ = {each.name: each.annotation for each in [*own, *options]}
    return run


def _ignore(message: str) -> None:
    """With --quiet, warnings are not printed."""

"""What a command says of our own warnings, and of no others."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import typer


def say_warning(text: str) -> None:
    """One line on stderr."""
    typer.echo(f"warning: {text}", err=True)


@contextmanager
def own_warnings(say: Callable[[str], None] = say_warning) -> Iterator[None]:
    """Say our warnings in a line each, once; those of the libraries are not for the user of a command."""
    from ldm.errors import LdmWarning

    said: set[str] = set()

    def show(message: Warning | str, *where: Any, **more: Any) -> None:
        if str(message) not in said:
            said.add(str(message))
            say(str(message))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", LdmWarning)
        warnings.showwarning = show
        yield

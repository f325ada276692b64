"""What the command line prints besides its results: errors and warnings, one line each, on stderr.

Text of unknown origin, such as names and captions, is escaped: a terminal executes nothing in it.
"""

import json
import unicodedata
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import typer

MAX_LETTERS = 200
"""Longer names and captions are cut."""

_DIRECTION_MARKS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Unicode characters that change the direction of the text after them."""


def say_error(message: str) -> None:
    """Print an error."""
    typer.echo("error: " + visible(" ".join(message.split("\n"))), err=True)


def say_warning(message: str) -> None:
    """Print a warning."""
    typer.echo("warning: " + visible(" ".join(message.split("\n"))), err=True)


@contextmanager
def own_warnings(say: Callable[[str], None] = say_warning) -> Iterator[None]:
    """Print each of our own warnings once, on one line; hide those of libraries, which the user cannot act on."""
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


def shown(text: str, max_letters: int = MAX_LETTERS) -> str:
    """The text on one line, with control characters escaped, cut if it is too long."""
    line = visible(text[: max_letters + 1])
    return line if len(line) <= max_letters else line[:max_letters] + "..."


def visible(text: str) -> str:
    """The text with line breaks and control characters escaped."""
    return "".join(map(_visible, text))


def visible_json(value: Any) -> str:
    """A value as indented JSON, with the same characters escaped as JSON escapes them."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    return "".join(
        f"\\u{ord(letter):04x}" if letter != "\n" and _is_hidden(letter) else letter for letter in text
    )


def _visible(letter: str) -> str:
    return letter.encode("unicode_escape").decode() if _is_hidden(letter) else letter


def _is_hidden(letter: str) -> bool:
    return letter in _DIRECTION_MARKS or unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp")


def count(number: int, noun: str) -> str:
    """Such as `1 image` and `12 images`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"

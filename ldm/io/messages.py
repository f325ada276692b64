"""What commands and training programs print besides their results: errors and warnings, one line each, on stderr.

Text of unknown origin, such as names and captions, is escaped: a terminal executes nothing in it.
"""

import json
import sys
import threading
import unicodedata
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from ldm.errors import LdmWarning

MAX_LETTERS = 200
"""Longer names and captions are cut."""

_DIRECTION_MARKS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Unicode characters that change the direction of the text after them."""


def say_error(message: str) -> None:
    """Print an error."""
    _say("error", message)


def say_warning(message: str) -> None:
    """Print a warning."""
    _say("warning", message)


def _say(kind: str, message: str) -> None:
    line = visible(" ".join(message.split("\n")))
    print(f"{kind}: {line}", file=sys.stderr, flush=True)


@contextmanager
def own_warnings(say: Callable[[str], None] = say_warning) -> Iterator[None]:
    """Print each of our own warnings once, on one line; hide those of libraries, which the user cannot act on."""
    said: set[str] = set()

    def once(message: str) -> None:
        if message not in said:
            said.add(message)
            say(message)

    with _own_only(once):
        yield


@contextmanager
def _own_only(say: Callable[[str], None]) -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with _shown_by(say):
            yield


_thread = threading.local()
_lock = threading.Lock()
_threads = 0
_process = ExitStack()


@contextmanager
def warnings_of_thread(say: Callable[[str], None]) -> Iterator[None]:
    """`own_warnings` for one of several threads, which share Python's filters; the same one may come more than once."""
    global _threads
    _thread.say = say
    with _lock:
        if not _threads:
            _process.enter_context(_own_only(_to_thread))
        _threads += 1
    try:
        yield
    finally:
        with _lock:
            _threads -= 1
            if not _threads:
                _process.close()
        del _thread.say


def _to_thread(message: str) -> None:
    getattr(_thread, "say", say_warning)(message)


@contextmanager
def every_warning() -> Iterator[None]:
    """Print our own warnings on one line, as often as they come; those of libraries appear as they do by default."""
    with warnings.catch_warnings(), _shown_by(say_warning):
        yield


@contextmanager
def _shown_by(say: Callable[[str], None]) -> Iterator[None]:
    """Pass our own warnings to a function. To be used inside `catch_warnings`, which restores everything."""

    def show(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
        if issubclass(category, LdmWarning):
            say(str(message))
        else:
            default(message, category, *where, **more)

    default = warnings.showwarning
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
    """A value as indented JSON, with the same characters escaped as JSON escapes them, and paths as text."""
    text = json.dumps(value, indent=2, ensure_ascii=False, default=str)
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

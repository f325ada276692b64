"""Errors that a user can mend: one line, what is wrong and what to do about it."""

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(Exception):
    """Something the user can mend; the command line prints it as one line and exits with code 2.

    Args:
        what: the thing at fault, named: a file, a key, a value.
        mend: what to do about it.
    """

    def __init__(self, what: str, mend: str = "") -> None:
        self.what = what
        self.mend = mend
        super().__init__(f"{what}: {mend}" if mend else what)


def nearest(name: str, choices: Iterable[str]) -> str | None:
    """The choice that `name` was most likely meant to be, or None when nothing is close."""
    matches = get_close_matches(name, list(choices), n=1, cutoff=0.5)
    return matches[0] if matches else None


def unknown_name(kind: str, name: str, choices: Iterable[str]) -> UserError:
    """The error for a name outside a fixed list, with the nearest right one."""
    choices = list(choices)
    guess = nearest(name, choices)
    hint = f"did you mean {guess!r}? " if guess else ""
    return UserError(f"unknown {kind} {name!r}", f"{hint}choose from {', '.join(choices)}")

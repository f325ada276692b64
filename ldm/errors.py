"""Errors and warnings for users: one line that says what is wrong and what to do about it."""

import inspect
import warnings
from collections.abc import Iterable
from difflib import get_close_matches
from types import FrameType

OURS = ("ldm", "train", "ldm_train")
WRAPPERS = ("contextlib", "torch")
"""Packages whose decorators, such as `torch.no_grad`, add frames between our functions and their callers."""


class UserError(Exception):
    """A mistake that the user can fix; the command line prints it as one line and exits with code 2.

    Args:
        what: what is wrong, naming the file, key or value.
        hint: what to do about it.
    """

    def __init__(self, what: str, hint: str = "") -> None:
        self.what = what
        self.hint = hint
        super().__init__(f"{what}: {hint}" if hint else what)


def nearest(name: str, choices: Iterable[str]) -> str | None:
    """The choice that `name` was most likely meant to be, or None if nothing is close."""
    matches = get_close_matches(name, list(choices), n=1, cutoff=0.5)
    return matches[0] if matches else None


def unknown_name(kind: str, name: str, choices: Iterable[str]) -> UserError:
    """The error for a name that is not in a fixed list; it suggests the nearest one that is."""
    choices = list(choices)
    guess = nearest(name, choices)
    hint = f"did you mean {guess!r}? " if guess else ""
    return UserError(f"unknown {kind} {name!r}", f"{hint}choose from {', '.join(choices)}")


class LdmWarning(UserWarning):
    """Something the user should know about a result that is produced all the same."""


def warn(message: str) -> None:
    """Issue an `LdmWarning` that points to the first calling line outside this package."""
    frame = inspect.currentframe()
    level = 1
    while frame is not None and _top_package(frame) in (*OURS, *WRAPPERS):
        frame, level = frame.f_back, level + 1
    warnings.warn(LdmWarning(message), stacklevel=level)


def _top_package(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", "")).partition(".")[0]

"""One thing to be said of a model's files."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ldm.errors import UserError

Severity = Literal["error", "warning", "note"]


@dataclass(frozen=True)
class Finding:
    """One thing to be said of a model's files.

    Attributes:
        severity: an error keeps the model from being what it claims to be, a warning should be known before it is
            used, a note is a fact.
        path: from the model's folder, with slashes; "." for the folder itself, a single file's name for that file.
        what: in one line.
    """

    severity: Severity
    path: str
    what: str

    def __str__(self) -> str:
        return f"{self.severity}: {self.path}: {self.what}"


def caught(root: Path, path: str, check: Callable[[], object]) -> Iterator[Finding]:
    """Run a check; what it refuses is an error, at `path` unless it names another."""
    try:
        check()
    except UserError as error:
        yield refused(root, path, error)


def refused(root: Path, path: str, error: UserError) -> Finding:
    """An error in words without the way to `root`; at the file that it begins with, if there is one, else at `path`."""
    said = str(error).replace(f"{root}/", "").replace(f"{root} ", "")
    named, _, rest = said.partition(" ")
    if (root / named.rstrip(":")).exists():
        return Finding("error", named.rstrip(":"), rest)
    return Finding("error", path, said)

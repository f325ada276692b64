"""Findings: what `ldm verify` reports about a model's files."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ldm.errors import UserError

Severity = Literal["error", "warning", "note"]


@dataclass(frozen=True)
class Finding:
    """A finding about a model's files.

    Attributes:
        severity: with an error the model is not usable, a warning should be read before using it, a note is a fact.
        path: relative to the model's folder, with slashes; "." is the folder itself, and a single file has its name.
        what: one line.
    """

    severity: Severity
    path: str
    what: str

    def __str__(self) -> str:
        return f"{self.severity}: {self.path}: {self.what}"


def caught(root: Path, path: str, check: Callable[[], object]) -> Iterator[Finding]:
    """Run a check; its UserError becomes an error at `path`, unless it names another file."""
    try:
        check()
    except UserError as error:
        yield refused(root, path, error)


def refused(root: Path, path: str, error: UserError) -> Finding:
    """A UserError as a finding, with paths relative to `root`: at the file that it begins with, or else at `path`."""
    said = str(error).replace(f"{root}/", "").replace(f"{root} ", "")
    named, _, rest = said.partition(" ")
    if (root / named.rstrip(":")).exists():
        return Finding("error", named.rstrip(":"), rest)
    return Finding("error", path, said)

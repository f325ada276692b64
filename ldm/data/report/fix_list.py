"""A table of what to do about each file or row that cannot be used, for a spreadsheet or a script."""

import csv
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ldm.data.sample import ImageInfo, Refusal
from ldm.io.files import write_bytes

if TYPE_CHECKING:
    from ldm.data.buckets import Placement
    from ldm.data.sources.reading import Reading

COLUMNS = ("what_to_do", "file", "what_is_wrong")


def write_fix_list(
    path: Path,
    reading: "Reading",
    facts: Mapping[str, ImageInfo | Refusal],
    placements: "Mapping[str, Placement | str]",
) -> None:
    """Write a CSV file with a line for each refusal, those with the same remedy together.

    Args:
        facts: from `survey`, by sample id.
        placements: from `place`, by sample id.

    Raises:
        UserError: the disk is full or the folder is not writable.
    """
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(COLUMNS)
    table.writerows(sorted(_rows(reading, facts, placements)))
    write_bytes(path, text.getvalue().encode("utf-8", "backslashreplace"))


def _rows(
    reading: "Reading",
    facts: Mapping[str, ImageInfo | Refusal],
    placements: "Mapping[str, Placement | str]",
) -> Iterator[tuple[str, str, str]]:
    for refusal in reading.refusals:
        yield _row(refusal.sample_id, refusal.reason, refusal.hint)
    for sample in reading.samples:
        found, placement = facts[sample.sample_id], placements.get(sample.sample_id)
        if isinstance(found, Refusal):
            yield _row(sample.image.name, found.reason, found.hint)
        elif isinstance(placement, str):
            what, _, hint = placement.rpartition(": ")
            yield _row(sample.image.name, f"{what}: {hint}", hint)


def _row(name: str, reason: str, hint: str) -> tuple[str, str, str]:
    what = reason.removesuffix(f": {hint}").removeprefix(f"{name}: ")
    return hint or "remove it", _cell(name), _cell(what)


def _cell(text: str) -> str:
    """A spreadsheet runs a cell that begins like a formula; an apostrophe makes it text."""
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text

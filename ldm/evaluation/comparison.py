"""Which of several evaluated models is better by each number, or that it cannot be told."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ldm.evaluation.measurement import Column, columns

CANNOT_TELL = "cannot tell"


@dataclass(frozen=True)
class Row:
    """One metric, measured in one way.

    Attributes:
        cells: the measurement of each model, None for one that was not measured in this way.
        verdict: the best model, or "cannot tell", or "" where there is nothing to compare or neither end is better.
    """

    column: Column
    verdict: str


def compare(reports: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[Row]:
    """A row for each metric and way of measuring it.

    Args:
        reports: the measurements of each model, by its name.
    """
    names = list(reports)
    return [Row(column, verdict(column, names)) for column in columns(list(reports.values()))]


def verdict(column: Column, names: Sequence[str]) -> str:
    """The model whose interval is better than, and apart from, those of all others measured in the same way.

    Two intervals that touch decide nothing. The models share their reference and seeds, so this is cautious: a test of
    the difference would decide more often.
    """
    measured = [
        (name, cell)
        for name, cell in zip(names, column.cells, strict=True)
        if cell and cell["low"] is not None
    ]
    better = column.metric["better"]
    if len(measured) < 2 or not better:
        return ""
    sign = 1 if better == "higher" else -1
    ends = [sorted((sign * cell["low"], sign * cell["high"])) for _, cell in measured]
    best = max(range(len(measured)), key=lambda i: sign * measured[i][1]["value"])
    apart = all(ends[best][0] > ends[i][1] for i in range(len(measured)) if i != best)
    return measured[best][0] if apart else CANNOT_TELL

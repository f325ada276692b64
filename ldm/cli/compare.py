"""`ldm compare`: the numbers of several evaluations, and which model is better, if that can be told."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import BaseModel

from ldm.cli.printer import Printer, reporting
from ldm.errors import UserError

if TYPE_CHECKING:
    from ldm.evaluation.comparison import Row


class _Evaluation(BaseModel):
    """What is read of an evaluation.json."""

    model: str
    measurements: list[dict[str, Any]]


@reporting
def compare(
    folders: Annotated[
        list[Path], typer.Argument(metavar="FOLDER...", help="Output folders of `ldm evaluate`, two or more.")
    ],
    *,
    printer: Printer,
) -> None:
    """Compare models that were evaluated in the same way.

    Numbers that were measured differently are in different rows. A model is named as better only if its interval lies
    apart from those of all others.
    """
    from ldm.cli.plot import run_names
    from ldm.evaluation.comparison import compare as compare_reports
    from ldm.io.json_files import read_json

    if len(folders) < 2:
        raise UserError("one evaluation", "name two or more")
    names = run_names(folders)
    files = [folder / "evaluation.json" for folder in folders]
    for file in files:
        if not file.is_file():
            raise UserError(f"{file} does not exist", "name the --output folder of `ldm evaluate`")
    found = [read_json(file, _Evaluation).measurements for file in files]
    rows = compare_reports(dict(zip(names, found, strict=True)))
    printer.result({"models": names, "rows": [_row(row) for row in rows]}, *_lines(names, rows))


def _row(row: "Row") -> dict[str, Any]:
    metric = row.column.metric
    return {
        "name": metric["name"],
        "protocol_hash": metric["protocol_hash"],
        "better": metric["better"],
        "cells": [None if cell is None else _cell(cell) for cell in row.column.cells],
        "verdict": row.verdict,
    }


def _cell(cell: Mapping[str, Any]) -> dict[str, Any]:
    return {name: cell[name] for name in ("value", "low", "high")}


def _lines(names: Sequence[str], rows: "Sequence[Row]") -> Iterator[str]:
    """A block for each metric."""
    width = max(map(len, names))
    for row in rows:
        metric = row.column.metric
        better = f", {metric['better']} is better" if metric["better"] else ""
        yield f"{metric['name']} ({metric['protocol_hash']}{better}): {row.verdict or 'not compared'}"
        for name, cell in zip(names, row.column.cells, strict=True):
            yield f"  {name:{width}}  {_text(cell)}"


def _text(cell: Mapping[str, Any] | None) -> str:
    if cell is None or cell["value"] is None:
        return "not measured in this way"
    if cell["low"] is None:
        return f"{cell['value']:.4g}, no interval"
    return f"{cell['value']:.4g} [{cell['low']:.4g}, {cell['high']:.4g}]"

"""`ldm compare`: evaluations beside each other, or a tournament between runs; which is better, if that can be told."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import BaseModel

from ldm.cli import options
from ldm.cli.data import CaptionColumn, ImageColumn, Split
from ldm.cli.evaluate import Clip, Data, FeaturesOption, PromptFile, Seed
from ldm.cli.printer import Printer, reporting
from ldm.cli.tournament import Varied, run_tournament, verdict_lines
from ldm.errors import UserError, unknown_name

if TYPE_CHECKING:
    from ldm.evaluation.comparison import Row


class _Evaluation(BaseModel):
    """What is read of an evaluation.json."""

    model: str
    measurements: list[dict[str, Any]]


EVALUATION = "evaluation.json"
Side = Annotated[
    int | None, typer.Option(min=1, metavar="PIXELS", help="Of the images.  [default: the model's]")
]


@reporting
def compare(
    sources: Annotated[
        list[Path],
        typer.Argument(
            metavar="FOLDER|RUN...",
            help="Output folders of `ldm evaluate`, two or more; or runs, checkpoints and models, to find the best.",
        ),
    ],
    *,
    data: Data = None,
    prompt_file: PromptFile = None,
    metric: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="What decides between runs: kid, clip, or judge for drawn shapes.  [default: kid with --data]",
        ),
    ] = None,
    budget: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Images in all.  [default: 64 for each candidate]"),
    ] = None,
    checkpoints: Annotated[
        str, typer.Option(metavar="all|last", help="Which checkpoints of a run are candidates.")
    ] = "all",
    weights: Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            help="Which weights of each checkpoint: average, trained or widths, such as average,0.05,0.1.  "
            "[default: average]",
        ),
    ] = None,
    guidance_scale: Annotated[
        str | None,
        typer.Option(metavar="LIST", help="Guidance scales, such as 2,4,7.  [default: the model's]"),
    ] = None,
    num_inference_steps: Annotated[
        str | None,
        typer.Option(
            metavar="LIST", help="Numbers of sampling steps, such as 10,25.  [default: the model's]"
        ),
    ] = None,
    height: Side = None,
    width: Side = None,
    seed: Seed = 0,
    features: FeaturesOption = "autoencoder",
    clip: Clip = None,
    output: Annotated[
        Path,
        typer.Option(
            metavar="FOLDER",
            help="For runs, where tournament.json, tournament.html, curves.svg and the features go. The same command "
            "continues one that was stopped.",
        ),
    ] = Path("comparison"),
    caption_column: CaptionColumn = "text",
    image_column: ImageColumn = "image",
    split: Split = "train",
    device: options.Device = None,
    dtype: options.Dtype = None,
    printer: Printer,
) -> None:
    """Compare evaluations, or find the best checkpoint and settings of runs.

    Evaluations: numbers that were measured differently are in different rows, and a model is named as better only if
    its interval lies apart from those of all others.

    Runs: every checkpoint with every combination of weights, guidance and steps is a candidate. All make the same
    images; each round the better half makes more, within the budget. A winner is named only if paired tests tell it
    apart from all others, with at most 5 % of errors in all.
    """
    without = [source for source in sources if not (source / EVALUATION).is_file()]
    if not without:
        _compare_evaluations(sources, printer)
        return
    if len(without) < len(sources):
        raise UserError(
            f"{without[0] / EVALUATION} does not exist",
            "name only output folders of `ldm evaluate`, or only runs and models",
        )
    if data is None and prompt_file is None and not sources[0].exists():
        raise UserError(f"{sources[0]} does not exist", "name output folders of `ldm evaluate`, or runs")
    sizes = {"height": height, "width": width}
    _compare_runs(
        sources,
        Varied(
            parse_name("--checkpoints", checkpoints, ("all", "last")),
            tuple(weights.split(",")) if weights else (),
            parse_numbers("--guidance-scale", guidance_scale, least=0.0),
            parse_numbers("--num-inference-steps", num_inference_steps, least=1.0, whole=True),
        ),
        None if metric is None else parse_name("--metric", metric, ("kid", "clip", "judge")),
        budget,
        output,
        printer,
        data=data,
        columns={"caption_column": caption_column, "image_column": image_column, "split": split},
        prompt_file=prompt_file,
        seed=seed,
        settings={name: value for name, value in sizes.items() if value is not None},
        options={"features": features, "clip": clip, "device": device, "dtype": dtype},
    )


def _compare_runs(
    sources: list[Path],
    varied: Varied,
    metric: Any,
    budget: int | None,
    output: Path,
    printer: Printer,
    **planned: Any,
) -> None:
    from ldm.evaluation.tournament_page import facts_of, write_tournament_page
    from ldm.io.files import write_json

    contest, outcome = run_tournament(
        sources, varied, metric, budget, output=output, quiet=printer.quiet, **planned
    )
    facts = {**facts_of(outcome, contest.candidates, contest.metric), "plan": contest.plan}
    write_json(output / "tournament.json", facts)
    page = write_tournament_page(output, facts, outcome, contest)
    printer.result(facts, *verdict_lines(facts), f"page: {page}")


def _compare_evaluations(folders: list[Path], printer: Printer) -> None:
    from ldm.cli.plot import run_names
    from ldm.evaluation.comparison import compare as compare_reports
    from ldm.io.json_files import read_json

    if len(folders) < 2:
        raise UserError("one evaluation", "name two or more")
    names = run_names(folders)
    found = [read_json(folder / EVALUATION, _Evaluation).measurements for folder in folders]
    rows = compare_reports(dict(zip(names, found, strict=True)))
    printer.result({"models": names, "rows": [_row(row) for row in rows]}, *_lines(names, rows))


def parse_name(option: str, text: str, choices: Sequence[str]) -> str:
    """One of a few names.

    Raises:
        UserError: it is another one.
    """
    if text not in choices:
        raise unknown_name(option, text, choices)
    return text


def parse_numbers(option: str, text: str | None, *, least: float, whole: bool = False) -> tuple[float, ...]:
    """Different numbers separated by commas; none if there is no text.

    Raises:
        UserError: one is not a number, too small, or given twice.
    """
    found: list[float] = []
    for part in text.split(",") if text is not None else ():
        try:
            number = float(part)
        except ValueError:
            number = float("nan")
        if not (least <= number < float("inf")) or (whole and number != int(number)) or number in found:
            kind = "whole numbers" if whole else "numbers"
            raise UserError(f"{option} {text}", f"give different {kind} from {least:g}, such as 2,4")
        found.append(number)
    return tuple(found)


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

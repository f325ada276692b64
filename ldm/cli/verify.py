"""`ldm verify`: whether a model is whole, harmless, and means to others what it means to us."""

from pathlib import Path
from typing import Annotated

import typer

from ldm.errors import UserError


def verify(
    path: Annotated[
        Path,
        typer.Argument(metavar="DIR|FILE", help="A model's folder, a LoRA or a single file; anybody's."),
    ],
    base: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="Of a LoRA: the model that it was trained on."),
    ] = None,
    draw: Annotated[
        bool,
        typer.Option(
            "--draw/--no-draw", help="Have the library that others use draw a picture, and compare."
        ),
    ] = True,
) -> None:
    """Look at a model's files without running them, then have it read by the library that others use.

    First the files alone: hashes (where export.json has them), pickles and code, headers, number formats, NaN, missing
    weights. If nothing is wrong, a picture from fixed noise is drawn by us and, in a fresh process, by diffusers or
    peft; they must agree to 1/255.
    """
    from ldm.export.verify.inspect import inspect_folder
    from ldm.models.loading.source import EMBEDDED

    if not path.exists() and str(path) in EMBEDDED:
        path = EMBEDDED[str(path)]
    findings = inspect_folder(path)
    for finding in findings:
        typer.echo(finding)
    if bad := sum(finding.severity == "error" for finding in findings):
        faults, they = ("faults", "they are") if bad > 1 else ("fault", "it is")
        raise UserError(f"{path} has {bad} {faults}", f"do not use it before {they} mended")
    if not draw:
        return
    from ldm.export.verify.check import check

    verdict = check(path, base)
    typer.echo(verdict)
    if not verdict.passed:
        raise UserError(f"{path} means something else to {verdict.reader}", "do not share it")

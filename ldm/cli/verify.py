"""`ldm verify`: checks that a model is complete and harmless, and that other libraries read it as we do."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from ldm.cli.printer import Printer, reporting
from ldm.errors import UserError


@reporting
def verify(
    path: Annotated[
        Path,
        typer.Argument(metavar="DIR|FILE", help="A model's folder, a LoRA or a single file, of any origin."),
    ],
    base: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="For a LoRA: the model that it was trained on."),
    ] = None,
    draw: Annotated[
        bool,
        typer.Option(
            "--draw/--no-draw", help="Also draw an image with the library that others use, and compare."
        ),
    ] = True,
    *,
    printer: Printer,
) -> None:
    """Check a model's files without running anything, then compare it with what other libraries make of it.

    The files are checked first: hashes (if there is an export.json), pickles and code, headers, number formats, NaN,
    missing weights. If they are all right, an image is drawn from fixed noise by us and, in a fresh process, by
    diffusers or peft. The two must agree to 1/255.
    """
    from ldm.export.verify.inspect import inspect_folder
    from ldm.models.loading.source import EMBEDDED

    if not path.exists() and str(path) in EMBEDDED:
        path = EMBEDDED[str(path)]
    findings = inspect_folder(path)
    printer.lines(*findings)
    facts: dict[str, Any] = {"findings": [asdict(finding) for finding in findings], "verdict": None}
    if bad := sum(finding.severity == "error" for finding in findings):
        printer.result(facts)
        faults, they = ("faults", "they are") if bad > 1 else ("fault", "it is")
        raise UserError(f"{path} has {bad} {faults}", f"do not use it until {they} fixed")
    if not draw:
        return printer.result(facts)
    from ldm.export.verify.check import check

    try:
        verdict = check(path, base)
    except UserError:
        printer.result(facts)
        raise
    printer.result(facts | {"verdict": verdict.to_dict()}, verdict)
    if not verdict.passed:
        raise UserError(f"{verdict.reader} gets another image from {path}", "do not share it")

"""The numbers of a report on a task of drawn scenes, as text."""

import sys
from collections.abc import Callable, Mapping
from typing import Any

from ldm.errors import UserError
from ldm.evaluation.metrics import mean_text, share_text


def lines_of(report: Mapping[str, Any]) -> list[str]:
    """The numbers of a report, a line for each part and kind."""
    text_of = {"scores": share_text, "quality": mean_text}
    lines = [
        f"{part:12}  {kind:14}  " + "; ".join(f"{name} {text(value)}" for name, value in found.items())
        for table, text in text_of.items()
        for part, kinds in report.get(table, {}).items()
        for kind, found in kinds.items()
    ]
    for simpler, kinds in report.get("gains", {}).items():
        gains = "; ".join(f"{name} {mean_text(value)}" for name, value in kinds["all"].items())
        lines.append(f"gain over {simpler}: {gains}")
    lines += [
        f"as captioned, {part}: {share_text(share)}" for part, share in report.get("as_captioned", {}).items()
    ]
    return lines


def run_and_print(measure: Callable[[Callable[[str, int], None]], Mapping[str, Any]]) -> int:
    """Measure with progress on stderr, and print the numbers; returns the exit code.

    Args:
        measure: called with the function that reports progress; returns the report.
    """

    def show(part: str, done: int) -> None:
        print(f"\r{part} {done}   ", end="", file=sys.stderr, flush=True)

    try:
        report = measure(show)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(file=sys.stderr)
    print("\n".join(lines_of(report)))
    return 0

"""The table in docs/benchmarks/README.md, written from the results beside it."""

from collections.abc import Sequence
from pathlib import Path

from .rows import table
from .suite import read_results

START, END = "<!-- benchmarks -->\n", "<!-- end of benchmarks -->"


def write_table(results: Sequence[Path], page: Path) -> None:
    """Replace what is between the two comments of a page by the table of some results.

    Args:
        results: JSON files, as `measure` writes them.
    """
    before, start, rest = page.read_text(encoding="utf-8").partition(START)
    _, end, after = rest.partition(END)
    if not (start and end):
        raise ValueError(f"{page} has no lines `{START.strip()}` and `{END}`")
    page.write_text(f"{before}{START}{table(read_results(results))}\n{END}{after}", encoding="utf-8")

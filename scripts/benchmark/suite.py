"""Run one or all benchmarks by name, and save and read their results."""

import json
import sys
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from ldm.errors import UserError

from .samples import Setting

BENCHMARKS = ("startup", "generate", "decode", "train", "upkeep", "cache", "scaling", "tasks")
"""Each is a module with a function of the same name, imported only when it runs."""
ON_CUDA = ("generate", "decode", "train", "upkeep", "scaling", "tasks")

LEGEND = (
    "Ratio: the other side's time divided by this side's, from medians of clean samples, during which other programs "
    "used less than a quarter of a core. Peak memory: this side's (the other's)."
)


def measure(name: str, setting: Setting, output: Path | None = None) -> str:
    """Run a benchmark, or `all`; returns a table.

    Args:
        output: JSON file for the result, rewritten after each benchmark.
    """
    from .rows import table

    if output:
        _check_output(output)
    known = BENCHMARKS if setting.device == "cpu" else ON_CUDA
    names = known if name == "all" else (name,)
    results: list[dict[str, Any]] = []
    for one in names:
        print(f"{one} ...", file=sys.stderr, flush=True)
        results.append(getattr(import_module(f".{one}", __package__), one)(setting))
        if output:
            output.parent.mkdir(parents=True, exist_ok=True)
            kept = {"results": results} if name == "all" else results[0]
            output.write_text(json.dumps(kept, indent=2, default=str) + "\n")
    return f"{table(results)}\n\n{LEGEND}"


def _check_output(output: Path) -> None:
    """Refuse to replace a file that is not a result of ours.

    Raises:
        UserError: it is not.
    """
    try:
        found = json.loads(output.read_text()) if output.is_file() and output.stat().st_size else {"rows": []}
    except (OSError, ValueError):
        found = None
    if output.is_dir() or not isinstance(found, dict) or not {"rows", "results"} & found.keys():
        raise UserError(f"{output} exists already, and is not a result of a benchmark", "name another file")


def read_results(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """The results in JSON files, of single benchmarks or of all; other files are skipped."""
    return [found for path in paths for found in _results_in(json.loads(path.read_text()))]


def _results_in(read: Any) -> Iterator[dict[str, Any]]:
    for found in read.get("results", [read]) if isinstance(read, dict) else ():
        if isinstance(found, dict) and {"benchmark", "rows"} <= found.keys():
            yield found

"""The rows of a result, each comparing two sides, and the table of rows."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from .samples import num_clean, ratio_of, recorded
from .workers import Answer, Taken


@dataclass(frozen=True)
class Row:
    """A comparison of one side against another.

    Attributes:
        case: what both did.
        ratio: how many times faster the side is; None with too few clean samples.
        goal: the ratio to reach; None if there is no goal.
        num_clean: clean samples of the side and of the other.
        num_samples: all samples of the side.
        largest_difference: between the two outputs, in standard deviations of the other's.
        peak_memory_mb: of the side and of the other, if they were separate processes.
    """

    case: str
    side: str
    against: str
    ratio: float | None
    goal: float | None
    num_clean: tuple[int, int]
    num_samples: int
    largest_difference: float | None = None
    peak_memory_mb: tuple[float, float] | None = None


def row_of(case: str, taken: Mapping[str, Taken], side: str, against: str, goal: float | None = None) -> Row:
    """The row of two sides that took turns."""
    ours, theirs = taken[side], taken[against]
    return Row(
        case=case,
        side=side,
        against=against,
        ratio=ratio_of(ours.samples, theirs.samples),
        goal=goal,
        num_clean=(num_clean(ours.samples), num_clean(theirs.samples)),
        num_samples=len(ours.samples),
        largest_difference=largest_difference(ours.output, theirs.output),
        peak_memory_mb=(ours.peak_memory_mb, theirs.peak_memory_mb),
    )


def largest_difference(ours: Answer, theirs: Answer) -> float | None:
    """In standard deviations of theirs; None if a side has no output, infinite if one is not finite."""
    if ours is None or theirs is None:
        return None
    if ours.shape != theirs.shape or not (np.isfinite(ours).all() and np.isfinite(theirs).all()):
        return float("inf")
    return float(np.abs(ours - theirs).max() / theirs.std())


def result_of(benchmark: str, rows: Sequence[Row], **more: Any) -> dict[str, Any]:
    """A benchmark's result, ready for JSON."""
    return {"benchmark": benchmark, "rows": [asdict(row) for row in rows], **more}


def taken_of(taken: Mapping[str, Taken]) -> dict[str, Any]:
    """The results of the sides' turns, ready for JSON."""
    return {
        name: {
            "ready_sec": one.ready_sec,
            "warm_up_sec": one.warm_up_sec,
            "peak_memory_mb": one.peak_memory_mb,
            "samples": recorded(one.samples),
        }
        for name, one in taken.items()
    }


COLUMNS = ("case", "side", "against", "ratio", "goal", "clean samples", "largest difference", "peak memory")


def table(results: Iterable[Mapping[str, Any]]) -> str:
    """The rows of several results as a Markdown table; a row that several machines measured shows their range."""
    same: dict[tuple[str, str, str], list[Mapping[str, Any]]] = {}
    for row in (row for result in results for row in result.get("rows", ())):
        same.setdefault((row["case"], row["side"], row["against"]), []).append(row)
    lines = [[*COLUMNS], ["---"] * len(COLUMNS), *map(_cells, same.values())]
    widths = [max(len(line[column]) for line in lines) for column in range(len(COLUMNS))]
    return "\n".join("| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in lines)


def _cells(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The cells of one row as each machine measured it; a goal is reached if it is on the slowest one."""
    ratios = sorted(row["ratio"] for row in rows if row["ratio"] is not None)
    goal = rows[0].get("goal")
    worst = ratios[0] if len(ratios) == len(rows) else None
    differences = [row["largest_difference"] for row in rows if row.get("largest_difference") is not None]
    memory = max((row["peak_memory_mb"] for row in rows if row.get("peak_memory_mb")), default=None)
    return [
        rows[0]["case"],
        rows[0]["side"],
        rows[0]["against"],
        " to ".join(dict.fromkeys(f"{ratio:.2f}" for ratio in (ratios[:1] + ratios[-1:]))) or "no verdict",
        "" if goal is None else f"{goal:g}{_reached(worst, goal)}",
        "; ".join(f"{row['num_clean'][0]} and {row['num_clean'][1]} of {row['num_samples']}" for row in rows),
        f"{max(differences):.1e} std" if differences else "",
        "" if memory is None else f"{memory[0]:,.0f} MB ({memory[1]:,.0f})",
    ]


def _reached(ratio: float | None, goal: float) -> str:
    return "" if ratio is None else ", reached" if ratio >= goal else ", missed"

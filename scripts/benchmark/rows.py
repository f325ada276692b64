"""The rows of a result: a side against another, with what supports the ratio; and the table of many of them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from .samples import num_clean, ratio_of, recorded
from .workers import Answer, Taken


@dataclass(frozen=True)
class Row:
    """A side against another.

    Attributes:
        case: what both did.
        ratio: how many times faster the side is; None with too few clean samples.
        goal: that the ratio should reach; None where there is none.
        num_clean: of the side and of the other.
        num_samples: in all, of the side.
        largest_difference: of the two answers, in standard deviations of the other's.
        peak_memory_mb: of this side and the other, if they ran in separate processes.
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
    """In standard deviations of theirs; None where a side gave no answer, infinite where one is not finite."""
    if ours is None or theirs is None:
        return None
    if ours.shape != theirs.shape or not (np.isfinite(ours).all() and np.isfinite(theirs).all()):
        return float("inf")
    return float(np.abs(ours - theirs).max() / theirs.std())


def result_of(benchmark: str, rows: Sequence[Row], **more: Any) -> dict[str, Any]:
    """A benchmark's result, ready for JSON."""
    return {"benchmark": benchmark, "rows": [asdict(row) for row in rows], **more}


def taken_of(taken: Mapping[str, Taken]) -> dict[str, Any]:
    """What came of the sides' turns, ready for JSON."""
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
    """A Markdown table of the rows of several results."""
    lines = [[*COLUMNS], ["---"] * len(COLUMNS)]
    lines += [_cells(row) for result in results for row in result.get("rows", ())]
    widths = [max(len(line[column]) for line in lines) for column in range(len(COLUMNS))]
    return "\n".join("| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in lines)


def _cells(row: Mapping[str, Any]) -> list[str]:
    ratio, goal, difference, memory = (
        row.get(name) for name in ("ratio", "goal", "largest_difference", "peak_memory_mb")
    )
    return [
        row["case"],
        row["side"],
        row["against"],
        "no verdict" if ratio is None else f"{ratio:.2f}",
        "" if goal is None else f"{goal:g}{_reached(ratio, goal)}",
        f"{row['num_clean'][0]} and {row['num_clean'][1]} of {row['num_samples']}",
        "" if difference is None else f"{difference:.1e} std",
        "" if memory is None else f"{memory[0]:,.0f} MB ({memory[1]:,.0f})",
    ]


def _reached(ratio: float | None, goal: float) -> str:
    return "" if ratio is None else ", reached" if ratio >= goal else ", missed"

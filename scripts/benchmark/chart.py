"""The chart of the results: one bar per row, as long as its ratio, with its goal."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .rows import table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

OURS, MISSED = "#0072B2", "#D55E00"
"""Okabe and Ito's blue and vermilion, which the colour-blind tell apart."""

LONGEST = 20
"""Times as fast: beside a longer bar the others would be too short to compare, so it is in the table alone."""


def draw(results: Sequence[Mapping[str, Any]], output: Path | None) -> str:
    """Draw the rows that have a verdict as a chart; returns the Markdown table of all rows.

    Raises:
        SystemExit: none has one, so there is nothing to draw.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    judged = [row for result in results for row in result["rows"] if row["ratio"] is not None]
    rows = [row for row in judged if row["ratio"] <= LONGEST]
    if output is not None:
        if not rows:
            raise SystemExit("error: no row has a verdict, so there is nothing to draw")
        figure = Figure(figsize=(9, 1.2 + 0.42 * len(rows)), dpi=150, layout="constrained")
        FigureCanvasAgg(figure)
        draw_bars(figure.add_subplot(), rows)
        output.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(output, metadata={"Software": None} if output.suffix == ".png" else {"Date": None})
    return table(results)


def draw_bars(axes: "Axes", rows: Sequence[Mapping[str, Any]]) -> None:
    """One bar a row, from top to bottom; those that miss their goal in another colour, the goal a line across."""
    ratios, goals = [row["ratio"] for row in rows], [row["goal"] for row in rows]
    missed = [goal is not None and ratio < goal for ratio, goal in zip(ratios, goals, strict=True)]
    at = range(len(rows))
    bars = axes.barh(at, ratios, height=0.6, color=[MISSED if each else OURS for each in missed])
    axes.bar_label(bars, [f"{ratio:.2f}" for ratio in ratios], padding=3, fontsize=9)
    for place, goal in enumerate(goals):
        if goal is not None:
            axes.plot([goal, goal], [place - 0.38, place + 0.38], color="black", linewidth=1.5)
    axes.set_yticks(
        at, [f"{row['side']} against {row['against']}\n{row['case']}" for row in rows], fontsize=8
    )
    axes.invert_yaxis()
    axes.axvline(1, color="0.6", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.1)
    axes.set_xlabel("times as fast")
    note = "black line: goal" + ("; orange: missed" if any(missed) else "")
    axes.set_title(note, loc="right", fontsize=8, color="0.35")

"""Compare training objectives on drawn scenes: several runs of each, scored, as a table with intervals."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

OBJECTIVES: dict[str, list[str]] = {
    "epsilon": ["schedule.prediction_type=epsilon"],
    "v": ["schedule.prediction_type=v_prediction"],
    "v-min-snr": ["schedule.prediction_type=v_prediction", "objective.weighting=min_snr"],
}
"""The objectives that are compared, and their settings."""

COLUMNS = ("shape", "colour", "size", "count", "relation", "all")


def training_command(config: str, objective: str, seed: int, run_dir: Path) -> list[str]:
    """The arguments of `ldm` for one training run."""
    return ["train", config, *OBJECTIVES[objective], f"seed={seed}", f"run_dir={run_dir}"]


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float, float]:
    """(mean, low, high): Student's t interval of the mean of a few runs (Gosset 1908), clipped to [0, 1].

    Raises:
        ValueError: there are fewer than two values.
    """
    if len(values) < 2:
        raise ValueError(f"{len(values)} value gives no interval")
    from scipy.stats import t  # type: ignore[import-untyped]

    middle = mean(values)
    spread = float(t.ppf((1 + confidence) / 2, len(values) - 1)) * stdev(values) / len(values) ** 0.5
    return middle, max(0.0, middle - spread), min(1.0, middle + spread)


def collect(reports: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """By objective, kind and attribute: each run's share and the interval of their mean.

    Args:
        reports: the reports of `score_shapes`, by `OBJECTIVE-SEED`.
    """
    table: dict[str, Any] = {}
    for objective in OBJECTIVES:
        runs = [reports[name] for name in sorted(reports) if name.rpartition("-")[0] == objective]
        table[objective] = {kind: _columns(runs, kind) for kind in ("seen", "held_out")}
    return table


def _columns(runs: Sequence[Mapping[str, Any]], kind: str) -> dict[str, Any]:
    columns = {}
    for name in COLUMNS:
        shares = [run[kind][name]["share"] for run in runs if name in run[kind]]
        if len(shares) > 1:
            middle, low, high = mean_interval(shares)
            columns[name] = {"mean": middle, "low": low, "high": high, "runs": shares}
    return columns


def markdown_table(table: Mapping[str, Any]) -> str:
    """The table as Markdown, with one row per objective and kind."""
    lines = [
        "| objective | scenes | " + " | ".join(COLUMNS) + " |",
        "|---" * (2 + len(COLUMNS)) + "|",
    ]
    for objective, kinds in table.items():
        for kind, columns in kinds.items():
            cells = [_cell(columns.get(name)) for name in COLUMNS]
            lines.append(f"| {objective} | {kind.replace('_', ' ')} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _cell(column: Mapping[str, float] | None) -> str:
    return f"{column['mean']:.3f} [{column['low']:.3f}, {column['high']:.3f}]" if column else "-"

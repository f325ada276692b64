"""Compare training objectives on drawn scenes: several runs of each, scored, as a table with intervals and verdicts."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from ldm.evaluation.curves import read_metrics
from ldm.io.json_files import read_object

OBJECTIVES: dict[str, list[str]] = {
    "v": ["schedule.prediction_type=v_prediction"],
    "v, min-SNR": ["schedule.prediction_type=v_prediction", "objective.weighting=min_snr"],
    "v, x_0, shifted": [
        "schedule.prediction_type=v_prediction",
        "objective.weighting=x_0",
        "objective.timestep_shift=5",
    ],
    "epsilon": ["schedule.prediction_type=epsilon"],
    "Improved DDPM": [
        "schedule.prediction_type=epsilon",
        "schedule.learn_variance=true",
        "objective.timestep_distribution=loss_aware",
    ],
    "VP SDE": ["path=vp"],
    "VE SDE": ["path=ve"],
    "EDM": ["path=edm"],
    "flow": ["path=flow"],
    "flow, logit-normal": ["path=flow", "objective.timestep_distribution=logit_normal"],
}
"""The objectives that are compared, and their settings."""

BASELINE = "v"
"""The objective that the verdicts compare with."""

COLUMNS = ("shape", "colour", "size", "count", "relation", "all")
KINDS = ("seen", "held_out")


def run_name(objective: str, seed: int) -> str:
    """The folder of a run: `v-min-snr-0`."""
    return f"{objective.lower().replace(',', '').replace(' ', '-')}-{seed}"


# What Python is given to make a run and to score it


def training_command(config: str, objective: str, seed: int, run_dir: Path) -> list[str]:
    """Train one run."""
    return ["-m", "ldm", "train", config, *OBJECTIVES[objective], f"seed={seed}", f"run_dir={run_dir}"]


def score_command(run_dir: Path, num_scenes: int) -> list[str]:
    """Judge scenes of one or two things, as the recipe's data has them, into `score` in the run."""
    options = ["--plain", "--num-scenes", str(num_scenes), "--output", str(run_dir / "score")]
    return ["scripts/score_shapes.py", "--model", str(run_dir), *options]


def likelihood_command(run_dir: Path, data: Path) -> list[str]:
    """Print the bits per dimension of the images in `data`, as JSON."""
    return ["-m", "ldm", "likelihood", str(run_dir), "--data", str(data), "--json", "--quiet"]


# Several runs


def read_runs(
    folder: Path,
) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]], dict[str, float]]:
    """What `collect` takes, of the runs in a folder: `RUN/score/report.json`, `likelihood.json`, `metrics.jsonl`."""
    scores = {path.parents[1].name: read_object(path) for path in sorted(folder.glob("*/score/report.json"))}
    likelihoods = {path.parent.name: read_object(path) for path in sorted(folder.glob("*/likelihood.json"))}
    seconds = {name: read_metrics(folder / name)[-1]["elapsed_sec"] for name in scores}
    return scores, likelihoods, seconds


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float, float]:
    """(mean, low, high): Student's t interval of the mean of a few runs (Gosset 1908).

    Raises:
        ValueError: there are fewer than two values.
    """
    if len(values) < 2:
        raise ValueError(f"{len(values)} value gives no interval")
    from scipy.stats import t  # type: ignore[import-untyped]

    middle = mean(values)
    spread = float(t.ppf((1 + confidence) / 2, len(values) - 1)) * stdev(values) / len(values) ** 0.5
    return middle, middle - spread, middle + spread


def verdict(values: Sequence[float], baseline: Sequence[float]) -> str:
    """`better`, `worse` or `cannot tell`: by the 95 % interval of the difference of two means (Welch 1947)."""
    from scipy.stats import ttest_ind

    if values == baseline:
        return "cannot tell"
    interval = ttest_ind(values, baseline, equal_var=False).confidence_interval(0.95)
    if interval.low > 0:
        return "better"
    return "worse" if interval.high < 0 else "cannot tell"


def collect(
    scores: Mapping[str, Mapping[str, Any]],
    likelihoods: Mapping[str, Mapping[str, Any]],
    seconds: Mapping[str, float],
) -> dict[str, Any]:
    """By objective: each run's shares, bits per dimension and seconds of training, and the interval of their mean.

    Args:
        scores: the reports of `score_shapes`, by `run_name`; objectives with fewer than two are left out.
        likelihoods: the results of `ldm likelihood --json`, by the same names. Its part of the latents counts: the
            others belong to the autoencoder, which all runs share.
        seconds: the time of each training.
    """
    table: dict[str, Any] = {}
    for objective in OBJECTIVES:
        runs = [name for name in _names(objective) if name in scores]
        if len(runs) > 1:
            table[objective] = {kind: _shares([scores[name][kind] for name in runs]) for kind in KINDS}
            bits = [likelihoods[name]["latents"]["mean"] for name in runs if name in likelihoods]
            table[objective]["bits"] = _summary(bits)
            table[objective]["seconds"] = _summary([seconds[name] for name in runs if name in seconds])
    for row in table.values():
        shares = [entry["seen"]["all"]["runs"] for entry in (row, table.get(BASELINE, row))]
        row["verdict"] = verdict(*shares)
    return table


def _names(objective: str, most: int = 100) -> Iterator[str]:
    return (run_name(objective, seed) for seed in range(most))


def _shares(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {
        name: _summary([run[name]["share"] for run in runs])
        for name in COLUMNS
        if all(name in r for r in runs)
    }


def _summary(values: Sequence[float]) -> dict[str, Any] | None:
    if len(values) < 2:
        return None
    middle, low, high = mean_interval(values)
    return {"mean": middle, "low": low, "high": high, "runs": list(values)}


# The table


def markdown_table(table: Mapping[str, Any]) -> str:
    """Two tables in Markdown: a verdict for each objective, and each attribute of the scenes."""
    baseline = BASELINE if BASELINE in table else "the first"
    lines = [
        f"| objective | seen: all right | held out: all right | bits per dimension | seconds | beside {baseline} |",
        "|---" * 6 + "|",
    ]
    for objective, row in table.items():
        cells = [_share(row["seen"].get("all")), _share(row["held_out"].get("all"))]
        cells += [_number(row["bits"], 3), _number(row["seconds"], 0), row["verdict"]]
        lines.append(f"| {objective} | " + " | ".join(cells) + " |")
    lines += ["", "| objective | scenes | " + " | ".join(COLUMNS) + " |", "|---" * (2 + len(COLUMNS)) + "|"]
    for objective, row in table.items():
        for kind in KINDS:
            cells = [_share(row[kind].get(name)) for name in COLUMNS]
            lines.append(f"| {objective} | {kind.replace('_', ' ')} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _share(column: Mapping[str, float] | None) -> str:
    """The interval of a share ends at 0 and 1, where Student's does not."""
    if column is None:
        return "-"
    low, high = max(0.0, column["low"]), min(1.0, column["high"])
    return f"{column['mean']:.3f} [{low:.3f}, {high:.3f}]"


def _number(column: Mapping[str, float] | None, digits: int) -> str:
    if column is None:
        return "-"
    return f"{column['mean']:.{digits}f} [{column['low']:.{digits}f}, {column['high']:.{digits}f}]"

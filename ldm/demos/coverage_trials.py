"""How often 95 % intervals hold the true value: trials on `ldm.demos.known_distances`, counted and added up."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm.demos.known_distances import Mixture, cases, true_distance
from ldm.evaluation.frechet import frechet_distance
from ldm.evaluation.intervals import Estimate
from ldm.evaluation.kernel_distance import (
    Kernel,
    cubic_kernel,
    gaussian_kernel,
    kernel_distance,
    quadratic_kernel,
)
from ldm.evaluation.metrics import exact_interval
from ldm.evaluation.neighbours import NUM_NEIGHBOURS, in_neighbourhoods, overlap
from ldm.io.files import write_json
from ldm.io.json_files import read_object
from ldm.noise import generator_for

SIZES = (100, 1000)
METRICS = ("kid", "cmmd", "second_moment", "fid", "overlap")
ROUND = 25
"""Trials of each case in one round."""

NUM_FRESH = 20_000
"""Fresh points that give the true share of an overlap, the other set held fixed."""

KERNELS: dict[str, Kernel] = {"kid": cubic_kernel, "cmmd": gaussian_kernel, "second_moment": quadratic_kernel}


@dataclass
class Tally:
    """What the trials of a case have given so far."""

    trials: int = 0
    covered: int = 0
    below: int = 0
    """Trials whose whole interval is above the truth."""
    total: float = 0.0
    squares: float = 0.0
    truths: float = 0.0

    def add(self, estimate: Estimate, truth: float) -> None:
        self.trials += 1
        self.covered += estimate.contains(truth)
        self.below += estimate.low > truth
        self.total += estimate.value
        self.squares += estimate.value**2
        self.truths += truth


def trial(case: str, metric: str, size: int, seed: int) -> Iterator[tuple[str, Estimate, float]]:
    """The estimates of one trial with their true values."""
    p, q = cases()[case]
    generator = generator_for("coverage", metric, size, seed)
    x, y = p.draw(size, generator), q.draw(size, generator)
    if metric in KERNELS:
        yield metric, kernel_distance(x, y, KERNELS[metric]).interval(), truth_of(case, metric)
    elif metric == "fid":
        yield metric, frechet_distance(x, y).estimate, truth_of(case, metric)
    else:
        yield from _overlap_trial(x, y, p, q, generator)


@cache
def truth_of(case: str, metric: str) -> float:
    """The true distance of a case, computed once."""
    return true_distance(metric, *cases()[case])


def _overlap_trial(
    x: Tensor, y: Tensor, p: Mixture, q: Mixture, generator: torch.Generator
) -> Iterator[tuple[str, Estimate, float]]:
    found = overlap(x, y)
    fresh_x, fresh_y = p.draw(NUM_FRESH, generator), q.draw(NUM_FRESH, generator)
    near_y, near_x = (in_neighbourhoods(*pair, NUM_NEIGHBOURS) for pair in ((fresh_x, y), (fresh_y, x)))
    yield "precision", found.precision, float((near_y.counts > 0).double().mean())
    yield "recall", found.recall, float((near_x.counts > 0).double().mean())
    yield "density", found.density, float(near_y.counts.double().mean()) / NUM_NEIGHBOURS
    radii = torch.cat([_radii(part, y) for part in fresh_y.view(-1, 2000, fresh_y.shape[1])])
    nearest = torch.cat(
        [torch.cdist(part, x).min(dim=1).values for part in fresh_y.view(-1, 2000, fresh_y.shape[1])]
    )
    yield "coverage", found.coverage, float((nearest <= radii).double().mean())


def _radii(points: Tensor, centres: Tensor) -> Tensor:
    return torch.cdist(points, centres).kthvalue(NUM_NEIGHBOURS, dim=1).values


def run_trials(
    path: Path, trials: int, minutes: float, metrics: Sequence[str], sizes: Sequence[int] = SIZES
) -> dict[str, Any]:
    """Run rounds until all cases have `trials`, or the time is up; writes the file after each round."""
    tallies: dict[str, Tally] = {}
    if path.exists():
        tallies = {name: Tally(**row) for name, row in read_object(path)["tallies"].items()}
    end = time.monotonic() + 60 * minutes
    while time.monotonic() < end:
        busy = False
        for case in cases():
            for size in sizes:
                for metric in metrics:
                    if metric == "overlap" and "shapes" in case:
                        continue  # points that are drawn twice have no neighbourhood
                    busy |= _round(tallies, (case, size, metric), trials, end)
            write_json(path, summary(tallies))
        if not busy:
            break
    return summary(tallies)


def _round(
    tallies: dict[str, Tally],
    key: tuple[str, int, str],
    trials: int,
    end: float,
) -> bool:
    """At most `ROUND` further trials of one case; returns whether there was one."""
    case, size, metric = key
    shown = "precision" if metric == "overlap" else metric
    done = tallies[f"{case}|{size}|{shown}"].trials if f"{case}|{size}|{shown}" in tallies else 0
    for seed in range(done, min(trials, done + ROUND)):
        if time.monotonic() > end:
            return False
        for name, estimate, truth in trial(case, metric, size, seed):
            tallies.setdefault(f"{case}|{size}|{name}", Tally()).add(estimate, truth)
    return done < trials


def summary(tallies: dict[str, Tally]) -> dict[str, Any]:
    """The tallies with the share of intervals that hold the truth, for JSON."""
    rows = []
    for key, tally in sorted(tallies.items()):
        case, size, metric = key.split("|")
        mean = tally.total / tally.trials
        variance = max(0.0, tally.squares / tally.trials - mean**2)
        low, high = exact_interval(tally.covered, tally.trials)
        rows.append(
            {
                "case": case,
                "n": int(size),
                "metric": metric,
                "trials": tally.trials,
                "coverage": tally.covered / tally.trials,
                "coverage_low": low,
                "coverage_high": high,
                "truth": tally.truths / tally.trials,
                "mean_estimate": mean,
                "stderr_of_mean": (variance / tally.trials) ** 0.5,
            }
        )
    return {"rows": rows, "tallies": {key: vars(tally) for key, tally in sorted(tallies.items())}}


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The table of docs/benchmarks/evaluation.md."""
    lines = [
        "| distributions | metric | N | trials | intervals that hold the truth | truth | mean estimate |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in sorted(rows, key=lambda row: (row["metric"], row["case"], row["n"])):
        share = f"{row['coverage']:.3f} [{row['coverage_low']:.3f}, {row['coverage_high']:.3f}]"
        estimate = f"{row['mean_estimate']:.3g} +- {row['stderr_of_mean']:.1g}"
        cells = (row["case"], row["metric"], row["n"], row["trials"], share, f"{row['truth']:.3g}", estimate)
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"

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
from ldm.evaluation.neighbours import NUM_NEIGHBOURS, neighbour_distances, overlap
from ldm.io.files import write_json
from ldm.io.json_files import read_object
from ldm.noise import generator_for

SIZES = (100, 1000)
METRICS = ("kid", "cmmd", "second_moment", "fid", "overlap")
ROUND = 25
"""Trials of each case in one round."""

NUM_FRESH = 20_000
"""Fresh points that give the true share of an overlap, the other set held fixed."""
BLOCK_POINTS = 500
"""Whose distances to a set fit into a processor's cache."""

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
    near_y = num_holding(fresh_x, y, neighbour_distances(y, NUM_NEIGHBOURS))
    near_x = num_holding(fresh_y, x, neighbour_distances(x, NUM_NEIGHBOURS))
    yield "precision", found.precision, float((near_y > 0).double().mean())
    yield "recall", found.recall, float((near_x > 0).double().mean())
    yield "density", found.density, float(near_y.double().mean()) / NUM_NEIGHBOURS
    yield "coverage", found.coverage, float(is_covered(fresh_y, x, y, NUM_NEIGHBOURS).double().mean())


def num_holding(points: Tensor, centres: Tensor, radii: Tensor) -> Tensor:
    """[N] how many of the balls, [M, d] and [M], hold each of the points [N, d]."""
    return torch.cat([(_squares(part, centres) <= radii.square()).sum(dim=1) for part in _blocks(points)])


def is_covered(points: Tensor, x: Tensor, y: Tensor, k: int) -> Tensor:
    """[N] whether a point's ball, which reaches to its k-th nearest of y, holds one of x.

    It does if fewer than k of y are nearer than the nearest of x, which needs no sorting.
    """
    covered = []
    for part in _blocks(points):
        nearest = _squares(part, x).min(dim=1, keepdim=True).values
        covered.append((_squares(part, y) < nearest).sum(dim=1) < k)
    return torch.cat(covered)


def _blocks(points: Tensor) -> Sequence[Tensor]:
    return points.double().chunk(-(-len(points) // BLOCK_POINTS))


def _squares(points: Tensor, centres: Tensor) -> Tensor:
    """[N, M] squared distances |p|^2 - 2 p.c + |c|^2 as one product of matrices, for points that are not duplicates."""
    left = torch.cat([points, points.square().sum(dim=1, keepdim=True), torch.ones(len(points), 1)], dim=1)
    right = torch.cat(
        [-2 * centres, torch.ones(len(centres), 1), centres.square().sum(dim=1, keepdim=True)], dim=1
    )
    return left @ right.T


def run_trials(
    path: Path, trials: int, minutes: float, metrics: Sequence[str], sizes: Sequence[int] = SIZES
) -> dict[str, Any]:
    """Run rounds until all cases have `trials`, or the time is up; writes the file once a minute."""
    tallies: dict[str, Tally] = {}
    if path.exists():
        tallies = {name: Tally(**row) for name, row in read_object(path)["tallies"].items()}
    end, written = time.monotonic() + 60 * minutes, time.monotonic()
    while time.monotonic() < end:
        busy = False
        for case in cases():
            for size in sizes:
                for metric in metrics:
                    if metric == "overlap" and "shapes" in case:
                        continue  # points that are drawn twice have no neighbourhood
                    busy |= _round(tallies, (case, size, metric), trials, end)
            if time.monotonic() > written + 60:  # the intervals of all rows take longer than many a round
                write_json(path, summary(tallies))
                written = time.monotonic()
        if not busy:
            break
    found = summary(tallies)
    write_json(path, found)
    return found


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

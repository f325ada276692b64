"""How often the 95 % intervals of `ldm evaluate` hold the true value, on distributions whose distances are known.

    python scripts/coverage.py docs/benchmarks/evaluation-coverage.json --minutes 10

Every distribution is known exactly, so the true distances are computed, not estimated. The trials are run in rounds
over all cases. A second call adds to the trials of the first, up to `--trials`.
"""

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm.demos.shapes import Scene, scene_for
from ldm.demos.shapes_drawing import draw
from ldm.evaluation.frechet import Moments, frechet_distance, frechet_of_moments
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
from ldm.io.images import image_to_tensor
from ldm.noise import generator_for

SIZES = (100, 1000)
ROUND = 25
"""Trials of each case in one round."""
NUM_SCENES = 400
NUM_FRESH = 20_000
"""Fresh points that give the true share of an overlap, the other set held fixed."""

KERNELS: dict[str, Kernel] = {"kid": cubic_kernel, "cmmd": gaussian_kernel, "second_moment": quadratic_kernel}


@dataclass(frozen=True)
class Mixture:
    """A mixture of Gaussians, with weights [K], means [K, d] and covariances [K, d, d]. Points have covariance 0."""

    weights: Tensor
    means: Tensor
    roots: Tensor

    def draw(self, number: int, generator: torch.Generator) -> Tensor:
        """[number, d]."""
        component = torch.multinomial(self.weights, number, replacement=True, generator=generator)
        if not self.roots.any():
            return self.means[component]
        noise = torch.randn(number, self.means.shape[1], generator=generator, dtype=torch.float64)
        return self.means[component] + torch.einsum("nij,nj->ni", self.roots[component], noise)

    @property
    def covariances(self) -> Tensor:
        return self.roots @ self.roots.transpose(1, 2)

    def moments(self) -> Moments:
        """Of the whole mixture."""
        mean = self.weights @ self.means
        apart = self.means - mean
        within = torch.einsum("k,kij->ij", self.weights, self.covariances)
        return Moments(mean, within + torch.einsum("k,ki,kj->ij", self.weights, apart, apart))

    def second_moment(self) -> Tensor:
        """E xx', [d, d]."""
        found = self.moments()
        return found.covariance + torch.outer(found.mean, found.mean)

    def third_moment(self) -> Tensor:
        """E x x x, [d, d, d]."""
        total = torch.zeros((self.means.shape[1],) * 3, dtype=torch.float64)
        for weight, mean, cov in zip(self.weights, self.means, self.covariances, strict=True):
            total += weight * torch.einsum("i,j,k->ijk", mean, mean, mean)
            for axes in ("ij,k->ijk", "ik,j->ijk", "jk,i->ijk"):
                total += weight * torch.einsum(axes, cov, mean)
        return total


def true_distance(name: str, p: Mixture, q: Mixture) -> float:
    """The exact squared MMD or Frechet distance."""
    if name == "fid":
        return frechet_of_moments(p.moments(), q.moments())
    second = (p.second_moment() - q.second_moment()).square().sum()
    if name == "second_moment":
        return float(second)
    if name == "kid":
        d = p.means.shape[1]
        first = (p.moments().mean - q.moments().mean).square().sum()
        third = (p.third_moment() - q.third_moment()).square().sum()
        return float(3 * first / d + 3 * second / d**2 + third / d**3)
    return gaussian_mean(p, p) + gaussian_mean(q, q) - 2 * gaussian_mean(p, q)


def gaussian_mean(p: Mixture, q: Mixture, sigma: float = 10.0) -> float:
    """E exp(-|x - y|^2 / 2 sigma^2) in closed form."""
    if not (p.roots.any() or q.roots.any()):
        return float(p.weights @ gaussian_kernel(p.means, q.means, sigma) @ q.weights)
    eye, total = torch.eye(p.means.shape[1], dtype=torch.float64) * sigma**2, 0.0
    for weight_p, mean_p, cov_p in zip(p.weights, p.means, p.covariances, strict=True):
        for weight_q, mean_q, cov_q in zip(q.weights, q.means, q.covariances, strict=True):
            spread, apart = eye + cov_p + cov_q, mean_p - mean_q
            exponent = -0.5 * float(apart @ torch.linalg.solve(spread, apart))
            volume = float(torch.linalg.det(spread / sigma**2)) ** -0.5
            total += float(weight_p * weight_q) * volume * math.exp(exponent)
    return total


def gaussian(shift: float = 0.0, scale: float = 1.0, dim: int = 8) -> Mixture:
    """One Gaussian whose standard deviations fall as 1/sqrt(rank), as those of features do."""
    deviations = torch.arange(1, dim + 1, dtype=torch.float64) ** -0.5 * scale
    mean = torch.zeros(1, dim, dtype=torch.float64)
    mean[0, 0] = shift
    return Mixture(torch.ones(1, dtype=torch.float64), mean, torch.diag(deviations)[None])


def three_modes(weights: Sequence[float], dim: int = 8) -> Mixture:
    """Three round Gaussians, two standard deviations and more apart."""
    means = torch.zeros(3, dim, dtype=torch.float64)
    means[0, 0], means[1, 1], means[2, 2] = 2.0, 2.0, -2.0
    roots = torch.eye(dim, dtype=torch.float64).repeat(3, 1, 1) * 0.7
    return Mixture(torch.tensor(weights, dtype=torch.float64), means, roots)


def shapes(weight_of: Callable[[Scene], float], dim: int = 12) -> Mixture:
    """400 drawn scenes as points: colours on a grid of 4 x 4, in the `dim` directions with most variance."""
    scenes = [scene_for(0, index) for index in range(NUM_SCENES)]
    drawn = [draw(scene, 32, "coverage", index) for index, scene in enumerate(scenes)]
    pixels = torch.stack([image_to_tensor(image) for image in drawn]).double()
    features = torch.nn.functional.adaptive_avg_pool2d(pixels, 4).flatten(1)
    directions = torch.linalg.svd(features - features.mean(dim=0), full_matrices=False).Vh[:dim]
    points = features @ directions.T
    weights = torch.tensor([weight_of(scene) for scene in scenes], dtype=torch.float64)
    return Mixture(weights / weights.sum(), points, torch.zeros(len(points), dim, dim, dtype=torch.float64))


def by_count(factor: float) -> Callable[[Scene], float]:
    """Scenes with more than one thing are drawn `factor` times as often."""
    return lambda scene: factor if len(scene.things) > 1 else 1.0


@cache
def cases() -> dict[str, tuple[Mixture, Mixture]]:
    """Pairs of distributions, by name."""
    even = three_modes((1 / 3, 1 / 3, 1 / 3))
    return {
        "Gaussian, equal": (gaussian(), gaussian()),
        "Gaussian, shifted by 0.5": (gaussian(), gaussian(shift=0.5)),
        "Gaussian, 1.3 times as wide": (gaussian(), gaussian(scale=1.3)),
        "mixture, equal": (even, even),
        "mixture, a mode half lost": (even, three_modes((0.4, 0.4, 0.2))),
        "shapes, equal": (shapes(by_count(1)), shapes(by_count(1))),
        "shapes, fewer with several things": (shapes(by_count(1)), shapes(by_count(0.5))),
    }


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


def run(
    path: Path, trials: int, minutes: float, metrics: Sequence[str], sizes: Sequence[int] = SIZES
) -> dict[str, Any]:
    """Run rounds until all cases have `trials`, or the time is up; writes the file after each round."""
    tallies: dict[str, Tally] = {}
    if path.exists():
        tallies = {name: Tally(**row) for name, row in json.loads(path.read_text())["tallies"].items()}
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--metrics", nargs="+", default=["kid", "cmmd", "second_moment", "fid", "overlap"])
    parser.add_argument("--sizes", nargs="+", type=int, default=list(SIZES))
    options = parser.parse_args()
    torch.set_num_threads(1)
    made = run(options.output, options.trials, options.minutes, options.metrics, options.sizes)
    print(markdown(made["rows"]))


if __name__ == "__main__":
    main()

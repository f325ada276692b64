"""Tournaments between candidates whose true means are known: how often is a winner named, and is it the best?

No model is involved. A candidate's score for image i is its mean plus a part that it shares with the others, because
all have the same prompt and noise, plus a part of its own. The correlation is the share of the former in the variance.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ldm.evaluation.kernel_distance import cubic_kernel, distance_and_scores
from ldm.evaluation.metrics import exact_interval
from ldm.evaluation.paired import Scores
from ldm.evaluation.tournament import Outcome, least_budget, play
from ldm.noise import choice, generator_for, uniform

Kind = Literal["normal", "skewed", "binary", "distance"]
Pattern = Literal["one", "ladder"]
IMAGES_PER_CANDIDATE = 64
NUM_FEATURES, NUM_REFERENCE = 8, 256
"""Of the distance."""


@dataclass(frozen=True)
class Case:
    """A kind of tournament. Candidate 0 is the best.

    Attributes:
        kind: how the scores are distributed. skewed: exponential, the candidates' own parts with scales of 0.5 to 2;
            binary: right or wrong; distance: KID of Gaussian features at different distances from the reference.
        gap: how far the best lies from the next, in standard deviations of a score; 0: all are equal.
        correlation: of two candidates' scores for one image.
        pattern: one: all others are equal; ladder: each is as far behind the one before.
    """

    kind: Kind
    num_candidates: int
    gap: float
    correlation: float
    pattern: Pattern = "one"

    def mean(self, candidate: int) -> float:
        steps = min(1, candidate) if self.pattern == "one" else candidate
        return -self.gap * steps

    @property
    def name(self) -> str:
        return f"{self.kind}, {self.num_candidates}, {self.pattern}"


class Simulated:
    """The candidates of one tournament; images are drawn in any amount, always the same."""

    def __init__(self, case: Case, *key: int | str) -> None:
        self.case, self.key = case, key
        self._drawn: dict[int, Tensor] = {}

    def make(self, wanted: Mapping[int, int]) -> None:
        """Nothing: scores are drawn when they are asked for."""

    def scores(self, candidate: int, num_images: int) -> Scores:
        if self.case.kind == "distance":
            return self._distance(candidate, num_images)
        return Scores.of_mean(self._all_scores(candidate)[:num_images])

    def _all_scores(self, candidate: int) -> Tensor:
        if candidate not in self._drawn:
            case, total = self.case, IMAGES_PER_CANDIDATE * self.case.num_candidates
            shared, own = self._draw(total, "shared"), self._draw(total, candidate)
            scale = 0.5 * 4 ** (candidate % 3 / 2) if case.kind == "skewed" else 1.0
            noise = case.correlation**0.5 * shared + (1 - case.correlation) ** 0.5 * scale * own
            scores = case.mean(candidate) + noise
            self._drawn[candidate] = (scores > 0).double() if case.kind == "binary" else scores
        return self._drawn[candidate]

    def _draw(self, total: int, *purpose: int | str) -> Tensor:
        normal = torch.randn(total, generator=generator_for(*self.key, *purpose), dtype=torch.float64)
        if self.case.kind != "skewed":
            return normal
        exponential: Tensor = -torch.special.ndtr(-normal).log()
        return exponential - 1  # mean 0, variance 1

    def _distance(self, candidate: int, num_images: int) -> Scores:
        """KID of features that lie 0.5 + the gap away from the reference, in each direction the same noise."""
        case = self.case
        away = 0.5 - case.mean(candidate)
        shared, own, reference = (
            torch.randn(rows, NUM_FEATURES, generator=generator_for(*self.key, "features", name)).double()
            for rows, name in (
                (num_images, "shared"),
                (num_images, candidate),
                (NUM_REFERENCE, "reference"),
            )
        )
        features = case.correlation**0.5 * shared + (1 - case.correlation) ** 0.5 * own
        features[:, 0] += away
        return distance_and_scores(features, reference, cubic_kernel)[1]


def tournament(case: Case, number: int, images_per_candidate: int = IMAGES_PER_CANDIDATE) -> Outcome:
    """One tournament of a case; another number is another one."""
    simulated = Simulated(case, "tournament", str(case), number)
    budget = max(images_per_candidate * case.num_candidates, least_budget(case.num_candidates))
    better: Literal["lower", "higher"] = "lower" if case.kind == "distance" else "higher"
    return play(case.num_candidates, budget, simulated.make, simulated.scores, better=better)


def cases() -> Iterator[Case]:
    """The cases of the table in docs/benchmarks/evaluation.md."""
    gaps = (0.0, 0.1, 0.3, 1.0)
    for num_candidates in (2, 8, 24):
        for correlation in (0.0, 0.9):
            yield from (Case("normal", num_candidates, gap, correlation) for gap in gaps)
    for kind in ("skewed", "binary"):
        for correlation in (0.0, 0.9):
            yield from (Case(kind, 8, gap, correlation) for gap in gaps)
    yield from (Case("normal", 8, gap, 0.5, "ladder") for gap in gaps[1:])
    yield from (Case("distance", 4, gap, 0.5) for gap in (0.0, 0.3, 1.0))


def mixed_case(number: int) -> Case:
    """One of all kinds at random, with a gap between 0.03 and 1, evenly by its logarithm."""
    key = ("mixed", number)
    kinds: tuple[Kind, ...] = ("normal", "skewed", "binary")
    patterns: tuple[Pattern, ...] = ("one", "ladder")
    return Case(
        kinds[choice(3, *key, "kind")],
        2 + choice(23, *key, "candidates"),
        0.03 * (1 / 0.03) ** uniform(*key, "gap"),
        (0.0, 0.5, 0.9)[choice(3, *key, "correlation")],
        patterns[choice(2, *key, "pattern")],
    )


@dataclass
class Tally:
    """Tournaments of a case, counted.

    Attributes:
        num_named: with a winner; `num_right` of these named the best. Where all are equal, none is right.
        best_lost: in which the best was found worse than another.
        num_images: made in all.
    """

    num: int = 0
    num_named: int = 0
    num_right: int = 0
    best_lost: int = 0
    num_images: int = 0

    def add(self, case: Case, outcome: Outcome) -> None:
        self.num += 1
        self.num_named += outcome.winner is not None
        self.num_right += outcome.winner == 0 and case.gap > 0
        self.best_lost += 0 not in outcome.possible
        self.num_images += outcome.num_images

    def to_dict(self) -> dict[str, Any]:
        """For JSON, with the exact interval of the share of named winners that are the best."""
        low, high = exact_interval(self.num_right, self.num_named) if self.num_named else (0.0, 1.0)
        return {**asdict(self), "right_low": low, "right_high": high}


def simulate(num_tournaments: int) -> dict[str, Any]:
    """Each case so often, and as many tournaments of mixed cases."""
    rows = []
    for case in cases():
        tally = Tally()
        for number in range(num_tournaments):
            tally.add(case, tournament(case, number))
        rows.append({**asdict(case), **tally.to_dict()})
    mixed = Tally()
    for number in range(num_tournaments):
        case = mixed_case(number)
        mixed.add(case, tournament(case, number))
    return {"mixed": mixed.to_dict(), "rows": rows}


def markdown(found: Mapping[str, Any]) -> str:
    """The table of docs/benchmarks/evaluation.md."""
    lines = [
        "| scores | candidates | gap | correlation | tournaments | winner named | not the best | images each |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in found["rows"]:
        scores = row["kind"] + (", ladder" if row["pattern"] == "ladder" else "")
        each = row["num_images"] / row["num"] / row["num_candidates"]
        cells = (
            scores,
            row["num_candidates"],
            row["gap"] or "0, all equal",
            row["correlation"],
            row["num"],
            f"{row['num_named'] / row['num']:.3f}",
            row["num_named"] - row["num_right"],
            f"{each:.0f}",
        )
        lines.append(f"| {' | '.join(map(str, cells))} |")
    mixed = found["mixed"]
    share = mixed["num_right"] / max(1, mixed["num_named"])
    lines += [
        "",
        f"In {mixed['num']} tournaments of all kinds mixed, a winner was named in {mixed['num_named']}. It was the "
        f"best in {mixed['num_right']} of these: {share:.3f} [{mixed['right_low']:.3f}, {mixed['right_high']:.3f}].",
    ]
    return "\n".join(lines) + "\n"

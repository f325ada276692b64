"""Which of many candidates is the best, by successive halving under a budget of images, or that it cannot be told.

All candidates make the same images: image i has the same prompt and noise for each, so they are compared image by
image. In each round every candidate that still plays makes some more images. Then each is compared with each, and the
better half plays on. Dropped candidates are not called worse; only a test does that.

A winner is named where every other candidate was found worse than some candidate. There are K (K - 1) statements "a is
worse than b", each of which is tested in up to R rounds. Each test has an error of alpha / (K (K - 1) R) (Bonferroni),
so with a probability of 1 - alpha all statements are right, and then so is the winner, no matter how many candidates
are dropped and when the rounds end. (Successive halving: Jamieson and Talwalkar, "Non-stochastic Best Arm
Identification and Hyperparameter Optimization", 2016. The last round, which returns to all that were not called worse,
is a race: Maron and Moore, "Hoeffding Races", 1994.)
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, log2
from typing import Literal

from ldm.evaluation.intervals import CONFIDENCE, Estimate, t_quantile
from ldm.evaluation.metrics import exact_interval
from ldm.evaluation.paired import Scores, paired_difference

STEP = 16
"""Images are made in pieces of this size, so each candidate has at least as many."""
LAST_SHARE = 0.5
"""The share of the budget for the last round."""

Make = Callable[[Mapping[int, int]], None]
"""Makes the images of each candidate up to a number, counted from 0; those that exist are kept."""
Measure = Callable[[int, int], Scores]
"""`measure(candidate, num_images)`: the scores of a candidate's first images."""


@dataclass(frozen=True)
class Standing:
    """How a candidate ended.

    Attributes:
        candidate: its number.
        num_images: that it has made.
        estimate: its own measurement.
        worse_than: the candidate that it was found worse than, or None.
        dropped_after: the round after which it stopped playing without being found worse, from 1, or None.
    """

    candidate: int
    num_images: int
    estimate: Estimate
    worse_than: int | None = None
    dropped_after: int | None = None


@dataclass(frozen=True)
class Outcome:
    """How a tournament ended.

    Attributes:
        winner: the candidate that all others were found worse than, directly or by way of another; None: cannot tell.
        standings: the best first; those that were found worse come last.
        num_rounds: how often the candidates were compared at most.
        error: of each test.
    """

    winner: int | None
    standings: tuple[Standing, ...]
    num_rounds: int
    error: float

    @property
    def possible(self) -> list[int]:
        """The candidates that may be the best, those with the better numbers first."""
        return [each.candidate for each in self.standings if each.worse_than is None]

    @property
    def num_images(self) -> int:
        return sum(each.num_images for each in self.standings)


def least_budget(num_candidates: int) -> int:
    """The fewest images that a tournament can be played with."""
    return sum(STEP * size for size in round_sizes(num_candidates)) + STEP


def round_sizes(num_candidates: int) -> list[int]:
    """How many candidates play in each round but the last one: half as many as in the one before."""
    num_rounds = max(1, ceil(log2(num_candidates)))
    return [ceil(num_candidates / 2**number) for number in range(num_rounds)]


def images_per_round(num_candidates: int, budget: int) -> list[int]:
    """Images that each candidate makes in each round but the last one; the rounds cost about the same.

    With a small budget each round has the fewest possible.
    """
    sizes = round_sizes(num_candidates)
    share = budget * (1 - LAST_SHARE) / len(sizes)
    amounts = [max(1, int(share / size / STEP)) * STEP for size in sizes]
    cost = sum(size * amount for size, amount in zip(sizes, amounts, strict=True))
    return amounts if cost + STEP <= budget else [STEP] * len(sizes)


def play(
    num_candidates: int,
    budget: int,
    make: Make,
    measure: Measure,
    *,
    better: Literal["lower", "higher"],
    confidence: float = CONFIDENCE,
) -> Outcome:
    """Play a tournament.

    Args:
        budget: images in all, at least `least_budget`.
        better: which measurements are better.
        confidence: the probability that every candidate that is called worse is worse, at least.

    Raises:
        ValueError: there are fewer than two candidates, or the budget is too small.
    """
    if num_candidates < 2 or budget < least_budget(num_candidates):
        raise ValueError(
            f"{num_candidates} candidates need {least_budget(max(2, num_candidates))} images, not {budget}"
        )
    table = _Table(num_candidates, measure, 1 if better == "higher" else -1)
    amounts = images_per_round(num_candidates, budget)
    num_rounds = len(amounts) + 1
    error = (1 - confidence) / (num_candidates * (num_candidates - 1) * num_rounds)
    playing = list(range(num_candidates))
    for number, (size, amount) in enumerate(zip(round_sizes(num_candidates), amounts, strict=True), 1):
        playing = [each for each in playing if each not in table.worse_than]
        for each in table.ranked(playing)[size:]:
            table.dropped_after[each] = number - 1
        playing = table.ranked(playing)[:size]
        table.add({each: table.num_images[each] + amount for each in playing}, make)
        table.compare(error)
        if len(table.possible) < 2:
            break
    else:
        wanted = level(table.num_images, table.ranked(table.possible), budget)
        table.dropped_after = {each: n for each, n in table.dropped_after.items() if each not in wanted}
        table.add(wanted, make)
        table.compare(error)
    return table.outcome(num_rounds, error)


def level(num_images: Sequence[int], possible: Sequence[int], budget: int) -> dict[int, int]:
    """How many images each possible candidate shall have: what is left of the budget goes to those with the fewest.

    Args:
        possible: the better ones first.
    """
    wanted = {each: num_images[each] for each in possible}
    left = (budget - sum(num_images)) // STEP
    for _ in range(left):
        fewest = min(possible, key=lambda each: wanted[each])
        wanted[fewest] += STEP
    return wanted


def proven_better(first: Scores, second: Scores, error: float, sign: int = 1) -> bool:
    """Whether `first` is better than `second`, by a paired test whose probability of a wrong yes is at most `error`.

    If scores are right or wrong, an exact sign test of the images on which they differ (McNemar 1947); otherwise
    Student's paired t test.

    Args:
        sign: 1 if higher is better, otherwise -1.
    """
    if first.per_reference is None and _is_binary(first) and _is_binary(second):
        gains = sign * (first.per_image - second.per_image)
        return _at_least_by_chance(int((gains > 0).sum()), int((gains < 0).sum())) <= error
    change = paired_difference(first, second)
    return sign * change.value > t_quantile(1 - error, change.degrees) * change.stderr


def _is_binary(scores: Scores) -> bool:
    return bool(((scores.per_image == 0) | (scores.per_image == 1)).all())


def _at_least_by_chance(num_won: int, num_lost: int) -> float:
    """The probability of winning so often or more, of won and lost images, if each is as likely."""
    n = num_won + num_lost
    tail, term = 0, 1
    for k in range(num_lost + 1):  # of n over k, up to k = num_lost
        tail += term
        term = term * (n - k) // (k + 1)
    return float(tail / 2**n)


class _Table:
    """The images made and the tests passed so far."""

    def __init__(self, num_candidates: int, measure: Measure, sign: int) -> None:
        self.num_images = [0] * num_candidates
        self.worse_than: dict[int, int] = {}
        self.dropped_after: dict[int, int] = {}
        self.sign = sign
        self._measure = measure
        self._known: dict[tuple[int, int], Scores] = {}
        self._undecided: set[tuple[int, int, int]] = set()

    def scores(self, candidate: int, num_images: int) -> Scores:
        key = candidate, num_images
        if key not in self._known:
            self._known[key] = self._measure(*key)
        return self._known[key]

    def value(self, candidate: int) -> float:
        """Higher is better; before the first image all are equal."""
        num_images = self.num_images[candidate]
        value: float = self.scores(candidate, num_images).value if num_images else 0.0
        return self.sign * value

    def ranked(self, candidates: Sequence[int]) -> list[int]:
        return sorted(candidates, key=self.value, reverse=True)

    @property
    def possible(self) -> list[int]:
        return [each for each in range(len(self.num_images)) if each not in self.worse_than]

    def add(self, wanted: Mapping[int, int], make: Make) -> None:
        more = {each: number for each, number in wanted.items() if number > self.num_images[each]}
        if more:
            make(more)
        for each, number in more.items():
            self.num_images[each] = number

    def compare(self, error: float) -> None:
        """Test each possible candidate against each other on the images that both have made."""
        ranked = self.ranked(self.possible)
        for place, each in enumerate(ranked):
            others = (*ranked[:place], *ranked[place + 1 :])  # better ones first: they are the likeliest
            found = next((other for other in others if self._is_better(other, each, error)), None)
            if found is not None:
                self.worse_than[each] = found

    def _is_better(self, first: int, second: int, error: float) -> bool:
        common = min(self.num_images[first], self.num_images[second])
        if (first, second, common) in self._undecided:
            return False
        pair = self.scores(first, common), self.scores(second, common)
        is_ahead = self.sign * (pair[0].value - pair[1].value) > 0
        if is_ahead and proven_better(*pair, error, self.sign):
            return True
        self._undecided.add((first, second, common))
        return False

    def outcome(self, num_rounds: int, error: float) -> Outcome:
        possible = self.ranked(self.possible)
        order = [*possible, *self.ranked(list(self.worse_than))]
        standings = tuple(
            Standing(
                each,
                self.num_images[each],
                own_interval(self.scores(each, self.num_images[each])),
                self.worse_than.get(each),
                self.dropped_after.get(each),
            )
            for each in order
        )
        return Outcome(possible[0] if len(possible) == 1 else None, standings, num_rounds, error)


def own_interval(scores: Scores) -> Estimate:
    """A candidate's measurement with its own 95 % interval, exact if scores are right or wrong.

    Overlapping ones may be told apart in pairs.
    """
    if scores.per_reference is None and _is_binary(scores):
        num_images = len(scores.per_image)
        return Estimate(scores.value, *exact_interval(int(scores.per_image.sum()), num_images, CONFIDENCE))
    variance = scores.more_variance + float(scores.per_image.var()) / len(scores.per_image)
    if scores.per_reference is not None:
        variance += float(scores.per_reference.var()) / len(scores.per_reference)
    spread = t_quantile((1 + CONFIDENCE) / 2, len(scores.per_image) - 1) * variance**0.5
    return Estimate(scores.value, scores.value - spread, scores.value + spread)

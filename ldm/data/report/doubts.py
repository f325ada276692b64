"""What may be wrong with data that can be used: words too rare to learn, contradicting captions, odd images."""

import math
import re
from collections.abc import Mapping, Sequence
from itertools import combinations, pairwise
from statistics import median

from ldm.data.report.contents import Doubts, RareWord
from ldm.data.sample import ImageInfo, Sample

RARE = 3
"""A word in fewer images than this is rare."""
LEAST_SAMPLES = 20
"""In a smaller data set nothing is rare, and nothing stands out."""
LETTERS = 3
"""Shorter words are not counted."""
MOST_ASPECT, MOST_SIDE = 2.0, 4.0
"""How many times the usual aspect ratio or side is not odd, whatever the others are."""
MOST_COMPARED = 500
"""How many equal images with several captions each are compared, every one with every other."""
DEVIATIONS = 3.5
NORMAL_MAD = 1.4826
"""The standard deviation of a normal distribution divided by its median absolute deviation."""

_WORD = re.compile(r"[^\W\d_]+")


def find_doubts(
    samples: Sequence[Sample], facts: Mapping[str, ImageInfo], equal: Sequence[Sequence[str]]
) -> Doubts:
    """What may be wrong with the used samples.

    Args:
        samples: the used ones, each once.
        facts: by sample id.
        equal: groups of ids whose images have the same bytes.
    """
    if len(samples) < LEAST_SAMPLES:
        return Doubts(contradictions=contradictions(samples, equal))
    aspects = {one: math.log(info.width / info.height) for one, info in facts.items()}
    sides = {one: math.log(info.width * info.height) / 2 for one, info in facts.items()}
    used_in = ids_by_word(samples)
    return Doubts(
        rare_words=rare_words(used_in),
        num_words=len(used_in),
        contradictions=contradictions(samples, equal),
        odd_aspects=outliers(aspects, math.log(MOST_ASPECT)),
        odd_sizes=outliers(sides, math.log(MOST_SIDE)),
    )


def words_of(caption: str) -> set[str]:
    """The words of a caption in lower case, without numbers."""
    return {word for word in _WORD.findall(caption.lower()) if len(word) >= LETTERS}


def ids_by_word(samples: Sequence[Sample]) -> dict[str, list[str]]:
    """The ids of the samples that have a word in their captions, by word."""
    found: dict[str, list[str]] = {}
    for sample in samples:
        for word in set().union(*map(words_of, sample.captions)):
            found.setdefault(word, []).append(sample.sample_id)
    return found


def rare_words(used_in: Mapping[str, Sequence[str]]) -> list[RareWord]:
    """The words in the captions of fewer than `RARE` samples, in alphabetical order; from `ids_by_word`."""
    return [RareWord(word, list(ids)) for word, ids in sorted(used_in.items()) if len(ids) < RARE]


def contradictions(samples: Sequence[Sample], equal: Sequence[Sequence[str]]) -> list[list[str]]:
    """The groups of equal images two of whose captions each have a word that the other lacks."""
    compared = {one for group in equal for one in group}
    words = {
        sample.sample_id: [words_of(caption) for caption in sample.captions]
        for sample in samples
        if sample.sample_id in compared
    }
    return [list(group) for group in equal if _contradict([words[one] for one in group])]


def _contradict(images: Sequence[Sequence[set[str]]]) -> bool:
    """Whether two images have no pair of captions of which one contains the other's words."""
    different = list(dict.fromkeys(frozenset(map(frozenset, captions)) for captions in images))
    if all(len(captions) == 1 for captions in different):
        # of any two, one contains the other, exactly if each contains the next smaller one
        chain = sorted((words for captions in different for words in captions), key=len)
        return any(not smaller <= larger for smaller, larger in pairwise(chain))
    return any(
        not any(a <= b or b <= a for a in first for b in second)
        for first, second in combinations(different[:MOST_COMPARED], 2)
    )


def outliers(values: Mapping[str, float], least: float) -> list[str]:
    """The ids whose values lie more than `DEVIATIONS` robust standard deviations and `least` from the median."""
    middle = median(values.values())
    spread = NORMAL_MAD * median(abs(value - middle) for value in values.values())
    limit = max(least + 1e-9, DEVIATIONS * spread)
    return sorted(one for one, value in values.items() if abs(value - middle) > limit)

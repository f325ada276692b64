"""The text of `ldm data check`: a summary of the data, and why samples cannot be used."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from ldm.io.messages import count, shown

if TYPE_CHECKING:
    from ldm.data.report.contents import DataReport
    from ldm.data.sources.reading import Reading

NUM_SHOWN = 3
"""How many of the longest captions, and of the images with each note, are shown."""
MAX_REFUSALS = 20
"""How many refused samples are shown; a report lists them all."""
MAX_REASON_LETTERS = 600
"""Longer reasons, including the hint, are cut."""


def refusal_lines(report: "DataReport", reading: "Reading") -> Iterator[str]:
    """The first refused samples, each with the reason, and how many more there are."""
    names = {sample.sample_id: sample.image.name for sample in reading.samples}
    refused = [outcome for outcome in report.samples if not outcome.used]
    for outcome in refused[:MAX_REFUSALS]:
        name = names.get(outcome.sample_id, outcome.sample_id)
        named = " ".join(name.split()) in outcome.reason
        reason = outcome.reason if named else f"{name}: {outcome.reason}"
        yield f"error: {shown(reason, MAX_REASON_LETTERS)}"
    if len(refused) > MAX_REFUSALS:
        yield f"error: {len(refused) - MAX_REFUSALS} more cannot be used; --report FOLDER lists them all"


def summary_lines(
    path: str, report: "DataReport", reading: "Reading", ignored_files: Mapping[str, int]
) -> Iterator[str]:
    """A summary of the data.

    Args:
        ignored_files: number of files that are not samples, by suffix.
    """
    captions = report.captions
    counted = f"{count(captions.num_captions, 'caption')} ({captions.num_different} different)"
    yield f"{shown(path)}: {count(report.num_used, 'usable image')}, {counted}"
    used = {outcome.sample_id: outcome for outcome in report.samples if outcome.used}
    if used:
        common = list(report.sizes.items())[:NUM_SHOWN]
        yield "sizes: " + ", ".join(f"{size} ({number})" for size, number in common)
        sides = [
            side for outcome in used.values() for side in (outcome.width, outcome.height) if side is not None
        ]
        yield f"smallest side: {min(sides)} pixels; largest: {max(sides)} pixels"
    if report.buckets:
        yield "buckets: " + ", ".join(f"{bucket} ({number})" for bucket, number in report.buckets.items())
    yield "longest captions:"
    texts = {caption for sample in reading.samples if sample.sample_id in used for caption in sample.captions}
    for caption in sorted(texts, key=lambda text: (-len(text), text))[:NUM_SHOWN]:
        yield f"  {count(len(caption), 'letter')}: {shown(caption)}"
    yield from _token_lines(report)
    yield from _duplicate_lines(report)
    yield from _doubt_lines(report)
    for note, names in report.notes.items():
        yield f"note: {shown(note)}: {count(len(names), 'image')} ({_first(names)})"
    if ignored_files:
        counted = ", ".join(f"{number} {shown(kind)}" for kind, number in ignored_files.items())
        yield f"note: files skipped: {counted}"


def _token_lines(report: "DataReport") -> Iterator[str]:
    captions = report.captions
    if captions.context_length is None:
        return
    longest = max((length for length, _ in captions.lengths), default=0)
    yield f"longest caption: {count(longest, 'token')}; the text encoder's context is {captions.context_length}"
    names = list(dict.fromkeys(one.sample_id for one in captions.truncated))
    if names:
        yield f"captions longer than the context: {len(captions.truncated)} ({_first(names)})"


def _duplicate_lines(report: "DataReport") -> Iterator[str]:
    kinds = {"exact duplicates": report.exact_duplicates, "near duplicates": report.near_duplicates}
    for kind, groups in kinds.items():
        if groups:
            yield f"{kind}: {count(len(groups), 'group')}, such as {_first(groups[0])}"


def _doubt_lines(report: "DataReport") -> Iterator[str]:
    doubts = report.doubts
    if doubts.rare_words:
        words = _first([each.word for each in doubts.rare_words])
        number = f"{len(doubts.rare_words)} of {doubts.num_words}"
        yield f"words in one or two images only, too few to be learned: {number} ({words})"
    for group in doubts.contradictions[:NUM_SHOWN]:
        yield f"equal images with captions that contradict each other: {_first(group)}"
    odd = {"much wider or taller": doubts.odd_aspects, "much larger or smaller": doubts.odd_sizes}
    for what, names in odd.items():
        if names:
            yield f"{what} than most: {count(len(names), 'image')} ({_first(names)})"


def _first(names: list[str]) -> str:
    return ", ".join(map(shown, names[:NUM_SHOWN])) + (", ..." if len(names) > NUM_SHOWN else "")

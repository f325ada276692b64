"""The data report: what happened to every sample, and what to look at before training.

Nothing is dropped silently: every sample found has an entry, and used + refused = found.
"""

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldm.data.duplicates import exact_duplicates, near_duplicates
from ldm.data.report.contents import CaptionReport, DataReport, LicenceReport, SampleOutcome, TruncatedCaption
from ldm.data.report.doubts import find_doubts
from ldm.data.report.page import report_page
from ldm.data.sample import ImageInfo, Refusal, Sample
from ldm.data.sources.no_caption import RULE_NOTES
from ldm.errors import UserError
from ldm.io.files import write_bytes
from ldm.io.json_files import parse_json
from ldm.io.opening import open_file, read_text

if TYPE_CHECKING:
    from ldm.data.buckets import Placement
    from ldm.data.sources.reading import Reading

JSON_NAME, PAGE_NAME = "data_report.json", "data_report.html"
PAGE_MARK = b"<title>Data report</title>"
_RIGHTS = re.compile(r"licen[cs]e|copyright|attribution|credit|^rights$|^(author|artist|creator)s?$")
_LICENCE = re.compile(r"licen[cs]e|^rights$")
_REPEAT = re.compile(r"(.+)#\d+", re.DOTALL)


def make_report(
    reading: "Reading",
    facts: Mapping[str, ImageInfo | Refusal],
    placements: "Mapping[str, Placement | str] | None" = None,
    count_tokens: Callable[[str], int] | None = None,
    context_length: int | None = None,
) -> DataReport:
    """Report on every sample of `reading`.

    Args:
        reading: the samples and refusals of the sources.
        facts: from `survey`, by sample id.
        placements: from `place`, by id of the samples that could be decoded: bucket and crops, or why it is refused.
        count_tokens: caption -> number of tokens, including start and end.
        context_length: how many tokens the text encoder reads: n (L - 2) + 2 for n chunks of context L.

    Raises:
        KeyError: a sample has no facts or placement, so it would be missing from the report.
    """
    captions = [caption for sample in reading.samples for caption in sample.captions]
    num_tokens = (
        {caption: count_tokens(caption) for caption in dict.fromkeys(captions)} if count_tokens else {}
    )
    outcomes = [
        _outcome(sample, facts[sample.sample_id], placements, num_tokens) for sample in reading.samples
    ]
    used = [sample for sample, outcome in zip(reading.samples, outcomes, strict=True) if outcome.used]
    outcomes += [SampleOutcome(refusal.sample_id, False, refusal.reason) for refusal in reading.refusals]
    num_refused = sum(not outcome.used for outcome in outcomes)
    assert len(used) + num_refused == len(reading.samples) + len(reading.refusals), "a sample went missing"
    repeats = _repeats(used)
    found_once = _facts_of((sample.sample_id for sample in used if sample.sample_id not in repeats), facts)
    exact = exact_duplicates(found_once)
    return DataReport(
        num_found=len(outcomes),
        num_used=len(used),
        num_refused=num_refused,
        num_repeats=len(repeats),
        captions=_caption_report(used, num_tokens, context_length),
        buckets=_occupancy(outcomes),
        sizes=_counted(f"{outcome.width} x {outcome.height}" for outcome in outcomes if outcome.used),
        exact_duplicates=exact,
        near_duplicates=_near_duplicates(found_once, exact),
        licences=_licences(used),
        notes=_notes(outcomes),
        samples=outcomes,
        doubts=find_doubts([sample for sample in used if sample.sample_id in found_once], found_once, exact),
    )


def check_report_folder(folder: Path) -> None:
    """Check that a report may be written to a folder: files of its names there are reports of ours.

    Raises:
        UserError: one is not.
    """
    for path in (folder / JSON_NAME, folder / PAGE_NAME):
        if os.path.lexists(path) and not is_report(path):
            raise UserError(
                f"{path} exists already, and is not a report of this program",
                "move it away, or choose another folder",
            )


def is_report(path: Path) -> bool:
    """Whether a file is a data report of ours, as JSON or as a page."""
    try:
        if path.suffix == ".json":
            found = parse_json(read_text(path))
            return isinstance(found, dict) and {"num_found", "num_used", "num_refused"} <= found.keys()
        with open_file(path) as file:
            return PAGE_MARK in file.read(100_000)
    except (OSError, ValueError, RecursionError):
        return False


def write_report(report: DataReport, folder: Path, samples: Sequence[Sample]) -> tuple[Path, Path]:
    """Write `data_report.json` and `data_report.html` to a folder; the page shows some of the images.

    Raises:
        UserError: the disk is full or the folder is not writable.
    """
    text = json.dumps(asdict(report), indent=2, ensure_ascii=False) + "\n"
    # a lone surrogate in a caption is not UTF-8, but valid JSON as \udc80
    write_bytes(folder / JSON_NAME, text.encode("utf-8", "backslashreplace"))
    page = report_page(report, samples)
    write_bytes(folder / PAGE_NAME, page.encode("utf-8", "backslashreplace"))
    return folder / JSON_NAME, folder / PAGE_NAME


def _outcome(
    sample: Sample,
    found: ImageInfo | Refusal,
    placements: "Mapping[str, Placement | str] | None",
    num_tokens: Mapping[str, int],
) -> SampleOutcome:
    if isinstance(found, Refusal):
        return SampleOutcome(sample.sample_id, False, found.reason)
    notes = (*found.notes, *([RULE_NOTES[sample.caption_rule]] if sample.caption_rule else []))
    known: dict[str, Any] = {"width": found.width, "height": found.height, "notes": notes}
    if num_tokens:
        known["num_tokens"] = max(num_tokens[caption] for caption in sample.captions)
    placement = placements[sample.sample_id] if placements is not None else None
    if isinstance(placement, str):
        return SampleOutcome(sample.sample_id, False, placement, **known)
    if placement is not None:
        known["bucket"] = f"{placement.width} x {placement.height}"
        known["scaled"] = f"{placement.scaled_width} x {placement.scaled_height}"
        known["crops"] = placement.crops
    return SampleOutcome(sample.sample_id, True, **known)


def _repeats(samples: Sequence[Sample]) -> set[str]:
    """The ids of samples made by a source's `repeats`: `a.png#2` with the same image as `a.png`."""
    images = {sample.sample_id: sample.image.name for sample in samples}
    repeats = set()
    for sample in samples:
        match = _REPEAT.fullmatch(sample.sample_id)
        if match and images.get(match[1]) == sample.image.name:
            repeats.add(sample.sample_id)
    return repeats


def _facts_of(ids: Iterable[str], facts: Mapping[str, ImageInfo | Refusal]) -> dict[str, ImageInfo]:
    return {sample_id: found for sample_id in ids if isinstance(found := facts[sample_id], ImageInfo)}


def _near_duplicates(facts: Mapping[str, ImageInfo], exact: Sequence[Sequence[str]]) -> list[list[str]]:
    """Groups of different files that look alike; exact duplicates are represented by the first."""
    further = {sample_id for group in exact for sample_id in group[1:]}
    return near_duplicates({id_: found.perceptual_hash for id_, found in facts.items() if id_ not in further})


def _caption_report(
    samples: Sequence[Sample], num_tokens: Mapping[str, int], context_length: int | None
) -> CaptionReport:
    captions = [(sample.sample_id, caption) for sample in samples for caption in sample.captions]
    lengths = Counter(num_tokens[caption] if num_tokens else len(caption) for _, caption in captions)
    limit = context_length if num_tokens and context_length is not None else max(lengths, default=0)
    cut = [(id_, caption) for id_, caption in captions if num_tokens and num_tokens[caption] > limit]
    truncated = [TruncatedCaption(id_, caption, num_tokens[caption]) for id_, caption in cut]
    return CaptionReport(
        num_captions=len(captions),
        num_different=len({caption for _, caption in captions}),
        unit="tokens" if num_tokens else "letters",
        context_length=context_length if num_tokens else None,
        lengths=sorted(lengths.items()),
        truncated=sorted(truncated, key=lambda one: (-one.num_tokens, one.sample_id)),
    )


def _occupancy(outcomes: Iterable[SampleOutcome]) -> dict[str, int]:
    """The number of used samples by bucket, smallest width first."""
    counts = Counter(outcome.bucket for outcome in outcomes if outcome.used and outcome.bucket is not None)
    return dict(sorted(counts.items(), key=lambda entry: [int(side) for side in entry[0].split(" x ")]))


def _licences(samples: Sequence[Sample]) -> LicenceReport:
    values: dict[str, list[str]] = {}
    num_without = 0
    for sample in samples:
        known = {key: str(value) for key, value in sample.extra.items() if value not in (None, "")}
        rights = {key: value for key, value in known.items() if _RIGHTS.search(key.lower())}
        num_without += not any(_LICENCE.search(key.lower()) for key in rights)
        for key, value in rights.items():
            values.setdefault(key, []).append(value)
    return LicenceReport({key: _counted(found) for key, found in values.items()}, num_without)


def _counted(values: Iterable[str]) -> dict[str, int]:
    """The number of times each value occurs, most common first."""
    return dict(Counter(values).most_common())


def _notes(outcomes: Iterable[SampleOutcome]) -> dict[str, list[str]]:
    notes: dict[str, list[str]] = {}
    for outcome in outcomes:
        for note in outcome.notes if outcome.used else ():
            notes.setdefault(note, []).append(outcome.sample_id)
    return notes

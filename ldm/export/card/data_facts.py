"""The facts of a model card about the training data, without any wording: only counts, no image's name or caption."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from ldm.export.card.facts import public_name
from ldm.export.card.run_record import RunRecord
from ldm.io.redaction import public_text
from ldm.models.loading.source import HUB_ID

_LICENCE = re.compile(r"licen[cs]e|^rights$", re.IGNORECASE)
_MOST_VALUES = 8


@dataclass(frozen=True)
class Counts:
    """Values with the number of images that have each, the most common first, and how many values are not shown."""

    shown: tuple[tuple[str, int], ...]
    num_more: int


@dataclass(frozen=True)
class Captions:
    """Captions of the data; `num_truncated` are longer than the `context_length` tokens that are read."""

    num: int
    num_different: int
    num_truncated: int
    context_length: int


@dataclass(frozen=True)
class Groups:
    """Groups of images that are the same or look alike."""

    num_images: int
    num_groups: int


@dataclass(frozen=True)
class DataFacts:
    """The contents of a data report.

    Attributes:
        shards: how many were seen, of how many; None if the data was not streamed.
        sizes, buckets: original sizes and training sizes in pixels.
        exact_duplicates, near_duplicates: None if they were not looked for.
        num_alike: images in any such group.
        licences: of the images, one a metadata field; None if they were not recorded.
    """

    num_found: int
    num_used: int
    num_repeats: int
    num_refused: int
    shards: tuple[int, int] | None
    sizes: Counts
    buckets: Counts
    captions: Captions | None
    exact_duplicates: Groups | None
    near_duplicates: Groups | None
    num_alike: int
    licences: tuple[Counts, ...] | None
    num_without_licence: int


def data_facts(run: RunRecord) -> DataFacts | None:
    """The facts of a run's data report; None if it wrote none."""
    report = run.data_report
    if report is None:
        return None
    licences = report.get("licences") or None
    groups = [*report.get("exact_duplicates", ()), *report.get("near_duplicates", ())]
    streamed = "num_shards" in report
    return DataFacts(
        num_found=report.get("num_found", 0),
        num_used=report.get("num_used", 0),
        num_repeats=report.get("num_repeats", 0),
        num_refused=report.get("num_refused", 0),
        shards=(report["num_shards_seen"], report["num_shards"]) if streamed else None,
        sizes=_counts(report.get("sizes", {})),
        buckets=_counts(report.get("buckets", {})),
        captions=_captions(report.get("captions")),
        exact_duplicates=_groups(report, "exact_duplicates"),
        near_duplicates=_groups(report, "near_duplicates"),
        num_alike=len(set(chain.from_iterable(groups))),
        licences=_licences(licences["fields"]) if licences else None,
        num_without_licence=licences["num_without"] if licences else 0,
    )


def _counts(counts: Mapping[str, int]) -> Counts:
    shown = tuple((public_text(name), number) for name, number in list(counts.items())[:_MOST_VALUES])
    return Counts(shown, max(0, len(counts) - _MOST_VALUES))


def _captions(captions: Mapping[str, Any] | None) -> Captions | None:
    if not captions:
        return None
    return Captions(
        captions["num_captions"],
        captions["num_different"],
        len(captions["truncated"]),
        captions["context_length"],
    )


def _groups(report: Mapping[str, Any], key: str) -> Groups | None:
    return Groups(sum(map(len, report[key])), len(report[key])) if key in report else None


def _licences(fields: Mapping[str, Mapping[str, int]]) -> tuple[Counts, ...]:
    return tuple(_counts(values) for key, values in fields.items() if _LICENCE.search(key))


def hub_datasets(run: RunRecord | None) -> list[str]:
    """The Hub ids of the data sets that a run was trained on."""
    data: Any = run.setting("data") if run else None
    sources = [data, *(data.get("sources") or ())] if isinstance(data, dict) else []
    found = [
        str(source["path"])
        for source in sources
        if isinstance(source, dict) and source.get("kind") == "datasets" and "path" in source
    ]
    return [name for name in dict.fromkeys(found) if HUB_ID.fullmatch(name) and not Path(name).exists()]


def data_names(run: RunRecord) -> list[str]:
    """The names of the data sets: Hub ids, and the last part of a path for folders and files."""
    on_hub = hub_datasets(run)
    sources = [{"path": run.setting("data.path")}, *(run.setting("data.sources") or ())]
    paths = [source.get("path") for source in sources if isinstance(source, Mapping)]
    named = [path if path in on_hub else public_name(path) for path in paths if isinstance(path, str)]
    return list(dict.fromkeys(named))

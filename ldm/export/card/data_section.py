"""What a card says of the pictures that a model was trained on: counts only, no picture's name and no caption."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ldm.export.card.markdown import code, escaped, table
from ldm.export.card.run_record import RunRecord
from ldm.io.redaction import redacted, redacted_prose

_LICENCE = re.compile(r"licen[cs]e|^rights$", re.IGNORECASE)
_MOST_VALUES = 8


def data_section(run: RunRecord, hub_datasets: Sequence[str]) -> str:
    """The section "Data" of a card."""
    rows = [("data", ", ".join(map(code, data_names(run, hub_datasets))))]
    report = run.data_report
    if report is None:
        note = "The run wrote no data report."
    else:
        rows += _counts(report) + _captions(report) + _duplicates(report) + _licences(report)
        note = "From the run's data report, in which every sample that was found is either used or refused."
    if held_out := run.setting("data.holdout_fraction"):
        rows.append(("held out of training", f"{held_out:.0%} of the samples used"))
    return f"{table(('what', 'value'), [row for row in rows if row[1]])}\n\n{note}"


def data_names(run: RunRecord, hub_datasets: Sequence[str]) -> list[str]:
    """What the data is called: ids of the Hub, and of folders and files the last part of their path."""
    paths = [run.setting("data.path"), *(_path_of(source) for source in run.setting("data.sources") or ())]
    named = [
        path if path in hub_datasets else str(redacted(path, "path", name_paths=True))
        for path in paths
        if isinstance(path, str)
    ]
    return list(dict.fromkeys(named))


def _path_of(source: Any) -> Any:
    return source.get("path") if isinstance(source, Mapping) else None


def _counts(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    used, found, refused = (report.get(key, 0) for key in ("num_used", "num_found", "num_refused"))
    repeats = report.get("num_repeats", 0)
    more = f", {repeats:,} of them repeats" if repeats else ""
    rows = [("pictures", f"{used:,} used{more}, {refused:,} refused, of {found:,} found")]
    if "num_shards" in report:
        rows.append(("shards", f"{report['num_shards_seen']:,} seen of {report['num_shards']:,}"))
    rows.append(("size of the pictures, px", _counted(report.get("sizes", {}))))
    rows.append(("trained at, px", _counted(report.get("buckets", {}))))
    return rows


def _captions(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    captions = report.get("captions")
    if not captions:
        return []
    text = f"{captions['num_captions']:,}, {captions['num_different']:,} different"
    if cut := len(captions["truncated"]):
        text += (
            f"; {cut:,} longer than the {captions['context_length']} tokens that are read, and cut off there"
        )
    return [("captions", text)]


def _duplicates(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = []
    for key, what in (("exact_duplicates", "the same file twice"), ("near_duplicates", "look alike")):
        if key in report:
            groups = report[key]
            found = f"{sum(map(len, groups)):,} pictures in {_groups(len(groups))}" if groups else "none"
            rows.append((what, found))
    return rows


def _groups(number: int) -> str:
    return f"{number:,} group{'' if number == 1 else 's'}"


def _licences(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    licences = report.get("licences")
    if not licences:
        return []
    named = [_counted(values) for key, values in licences["fields"].items() if _LICENCE.search(key)]
    without = licences["num_without"]
    named += [f"not named: {without:,}"] if without else []
    return [("licences of the pictures", "; ".join(named))]


def _counted(counts: Mapping[str, int]) -> str:
    """Values with how many have each; the first are the most common."""
    shown = [
        f"{escaped(redacted_prose(name))}: {count:,}" for name, count in list(counts.items())[:_MOST_VALUES]
    ]
    rest = len(counts) - len(shown)
    return ", ".join(shown) + (f" and {rest:,} more" if rest > 0 else "")

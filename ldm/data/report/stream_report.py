"""The report on a stream, which grows shard by shard and stops the run if too many samples are unusable."""

import json
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import BaseModel, NonNegativeInt

from ldm.data.report.report import JSON_NAME, is_report, make_report
from ldm.data.stream_shards import OpenShard, Shard
from ldm.data.streaming import changed
from ldm.errors import UserError
from ldm.io.files import write_bytes, write_json
from ldm.io.json_files import read_json

FOLDER = "data_report"
NUM_BEFORE_JUDGING = 100
"""The run is not stopped before this many samples have been seen, unless there are no more shards."""

_NUM_NAMED = 10
_OWN_FILE = re.compile(r"shard-\d{5}\.json")


class _SeenShard(BaseModel):
    """What `_row` says of a shard."""

    shard: str
    report: str
    contents: str
    num_found: NonNegativeInt
    num_used: NonNegativeInt
    num_refused: NonNegativeInt
    buckets: dict[str, int]
    reasons: list[str]


class _SeenShards(BaseModel):
    shards: list[_SeenShard]


class StreamReport:
    """`data_report.json` with a row per shard, and in `data_report/` what happened to every sample of each shard.

    Duplicates are searched inside each shard only. A resumed run reads the rows again, so that each shard is counted
    once and a changed shard is noticed.

    Args:
        folder: the run's directory.
        num_shards: the number of shards in total.
        resumed: whether to read the rows of an earlier process of this run.
        main: whether this process writes. All processes keep the same rows.
        count_tokens: caption -> number of tokens, including start and end.
        context_length: how many tokens the text encoder reads.
    """

    def __init__(
        self,
        folder: Path,
        num_shards: int,
        max_bad_fraction: float,
        *,
        resumed: bool = False,
        main: bool = True,
        count_tokens: Callable[[str], int] | None = None,
        context_length: int | None = None,
    ) -> None:
        self.folder, self.num_shards, self.max_bad_fraction, self.main = (
            folder,
            num_shards,
            max_bad_fraction,
            main,
        )
        self.count_tokens, self.context_length = count_tokens, context_length
        self.rows: dict[str, dict[str, Any]] = {}
        if resumed and (folder / JSON_NAME).is_file():
            seen: _SeenShards = read_json(folder / JSON_NAME, _SeenShards)
            self.rows = {row.shard: row.model_dump() for row in seen.shards}
        if main and not resumed:
            _remove_old(folder / FOLDER)

    def add(self, found: OpenShard) -> None:
        """Add an opened shard; one that was seen before must be unchanged.

        Raises:
            UserError: it has changed, or too many of the samples seen so far cannot be used.
        """
        known = self.rows.get(found.shard.shard_id)
        if known is not None and known["contents"] != found.contents:
            raise changed(found.shard)
        if known is None:
            self.rows[found.shard.shard_id] = _row(found)
            if self.main:
                self._write(found)
        self._check()

    def summary(self) -> dict[str, Any]:
        """Counts over the shards seen so far, and their rows; used + refused = found."""
        rows = list(self.rows.values())
        buckets: Counter[str] = Counter()
        for row in rows:
            buckets.update(row["buckets"])
        counts = {name: sum(row[name] for row in rows) for name in ("num_found", "num_used", "num_refused")}
        seen = {"num_shards": self.num_shards, "num_shards_seen": len(rows)}
        return {**seen, **counts, "buckets": dict(buckets), "shards": rows}

    def _write(self, found: OpenShard) -> None:
        report = make_report(
            found.reading, found.facts, found.prepared.placements(), self.count_tokens, self.context_length
        )
        text = json.dumps(asdict(report), indent=2) + "\n"
        write_bytes(self.folder / _file_of(found.shard), text.encode())
        write_json(self.folder / JSON_NAME, self.summary())

    def _check(self) -> None:
        summary = self.summary()
        num_found, num_refused = summary["num_found"], summary["num_refused"]
        all_seen = len(self.rows) == self.num_shards
        if (
            num_found < (1 if all_seen else NUM_BEFORE_JUDGING)
            or num_refused <= self.max_bad_fraction * num_found
        ):
            return
        reasons = [reason for row in self.rows.values() for reason in row["reasons"]]
        raise UserError(
            f"{num_refused} of the {num_found} samples seen so far are bad, more than max_bad_fraction "
            f"{self.max_bad_fraction:g} allows ({'; '.join(reasons[:_NUM_NAMED])})",
            "fix or remove them",
        )


def _remove_old(folder: Path) -> None:
    """Remove the files of a run that was killed before its first checkpoint, and no other files."""
    for path in folder.glob("shard-*.json"):
        if _OWN_FILE.fullmatch(path.name) and is_report(path):
            path.unlink()


def _file_of(shard: Shard) -> str:
    return f"{FOLDER}/shard-{shard.number:05d}.json"


def _row(found: OpenShard) -> dict[str, Any]:
    """A summary of a shard as JSON values."""
    prepared = found.prepared
    buckets = Counter(f"{one.placement.width} x {one.placement.height}" for one in prepared.placed)
    return {
        "shard": found.shard.shard_id,
        "report": _file_of(found.shard),
        "contents": found.contents,
        "num_found": prepared.num_found,
        "num_used": len(prepared.placed),
        "num_refused": len(prepared.refusals),
        "buckets": dict(buckets),
        "reasons": [refusal.reason for refusal in prepared.refusals[:_NUM_NAMED]],
    }

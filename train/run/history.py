"""What a run has written besides its checkpoints: rows, snapshots, best weights; a resumed run says what is lost.

The weights do not depend on these files, so nothing is refused. But plots, `ldm ema`, early stopping and the choice of
the best step do, and they would silently ignore a gap.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from ldm.config import Settings
from ldm.errors import UserError
from ldm.evaluation.curves import METRICS, read_metrics
from ldm.io.files import MANIFEST, manifest_fault
from ldm.io.json_files import read_json

from ..settings.shared import TrainSettings
from .best import MEASURES
from .checkpoints import checkpoints, step_of

BAD_STEPS = "bad_steps.jsonl"
DECIDING = {measure.key for measure in MEASURES.values()}
"""The measurements in a row that the best step and early stopping may be decided by."""
CLOCKS = ("elapsed_sec", "call_sec")
"""Values in a row that differ from run to run."""

MAX_HASHED_BYTES = 2**30
"""Snapshots of more than this in all are compared by size; reading hundreds of them would take many minutes."""


class History(Settings):
    """What a run had written up to a checkpoint.

    Attributes:
        rows_hash: of the rows of metrics.jsonl without their times.
        snapshots: the steps of the snapshots of averages.
    """

    num_rows: int = 0
    num_validations: int = 0
    rows_hash: str = ""
    snapshots: tuple[int, ...] = Field(default=())


def history_until(run_dir: Path, step: int) -> History:
    """What a run has written of the steps up to `step`; broken rows count as missing."""
    rows = [row for row in _rows(run_dir / METRICS) if row["step"] <= step]
    snapshots = tuple(s for path in checkpoints(run_dir / "averages") if (s := step_of(path)) <= step)
    return History(
        num_rows=len(rows),
        num_validations=sum(bool(DECIDING & row.keys()) for row in rows),
        rows_hash=_rows_hash(rows),
        snapshots=snapshots,
    )


def lost_history(settings: TrainSettings, step: int, before: History | None, num_bad_steps: int) -> list[str]:
    """What is missing of a run's history, and what that makes impossible; a line each.

    Args:
        before: what the checkpoint of `step` recorded; None if it is of an older version.
        num_bad_steps: how many steps the run skipped.
    """
    now = history_until(settings.run_dir, step)
    return [
        *_lost_rows(settings, step, before, now),
        *_lost_snapshots(settings, before, now),
        *_lost_best(settings, step),
        *_lost_bad_steps(settings, step, num_bad_steps),
    ]


def _lost_rows(settings: TrainSettings, step: int, before: History | None, now: History) -> Iterator[str]:
    if before is None:  # the first row is due at log_every
        lost = "all rows" if step >= settings.log_every and not now.num_rows else ""
        validations = bool(lost)
    else:
        missing = before.num_rows - now.num_rows
        lost = f"{missing} of {before.num_rows} rows" if missing > 0 else ""
        if not lost and before.rows_hash != now.rows_hash:
            lost = "rows as they were logged; some have changed"
        validations = before.num_validations != now.num_validations
    if not lost:
        return
    yield f"{settings.run_dir / METRICS} lacks {lost} up to step {step}: `ldm plot` cannot show them" + (
        ", and the best step and early stopping are decided without them" if validations else ""
    )


def _lost_snapshots(settings: TrainSettings, before: History | None, now: History) -> Iterator[str]:
    folder = settings.run_dir / "averages"
    found = [folder / f"step-{step:06d}" for step in now.snapshots]
    faults = folder_faults(found)
    faults += [f"{folder}/step-{step:06d} is missing" for step in _missing(before, now)]
    num_good = len(found) - sum(bool(folder_faults([path])) for path in found) if faults else len(found)
    for fault in faults:
        without = "does without it" if num_good else "has no snapshot of these steps"
        yield f"{fault}: `ldm ema` {without}"


def _missing(before: History | None, now: History) -> list[int]:
    return sorted(set(before.snapshots) - set(now.snapshots)) if before else []


def _lost_best(settings: TrainSettings, step: int) -> Iterator[str]:
    """The best weights up to the checkpoint; later ones are made again."""
    if not settings.validation.keep_best:
        return
    found = [path for path in checkpoints(settings.run_dir / "best") if step_of(path) <= step]
    key = MEASURES[settings.validation.decider].key
    measured = any(key in row and row["step"] <= step for row in _rows(settings.run_dir / METRICS))
    faults = folder_faults(found[-1:])
    if measured and not found:
        faults = [f"{settings.run_dir / 'best'} is missing"]
    for fault in faults:
        yield f"{fault}: the best weights so far are lost, and only a better step replaces them"


def _lost_bad_steps(settings: TrainSettings, step: int, num_bad_steps: int) -> Iterator[str]:
    path = settings.run_dir / BAD_STEPS
    lost = num_bad_steps - sum(row["step"] <= step for row in _rows(path))
    if lost > 0:
        yield f"{path} lacks {lost} of {num_bad_steps} skipped steps: their samples are no longer named"


def folder_faults(folders: Sequence[Path]) -> list[str]:
    """What is wrong with folders that have a manifest: by their hashes, or of very large ones by their sizes."""
    size = sum(path.stat().st_size for folder in folders for path in folder.iterdir() if path.is_file())
    check = manifest_fault if size <= MAX_HASHED_BYTES else _size_fault
    return [fault for folder in folders if (fault := check(folder))]


def _size_fault(folder: Path) -> str | None:
    try:
        entries = read_json(folder / MANIFEST)
        sizes = {name: entry["size_bytes"] for name, entry in entries.items()}
    except (UserError, AttributeError, TypeError, KeyError):
        return f"{folder / MANIFEST} is unreadable"
    for name, size in sizes.items():
        file = folder / name
        if not file.is_file() or file.stat().st_size != size:
            return f"{file} has changed since it was written"
    return None


def _rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a file that can be read; broken ones are left out."""
    try:
        return read_metrics(path)
    except (UserError, ValueError):
        return []


def _rows_hash(rows: Sequence[Mapping[str, Any]]) -> str:
    digest = hashlib.sha256()
    for row in rows:
        kept = {key: value for key, value in row.items() if key not in CLOCKS}
        digest.update(json.dumps(kept, sort_keys=True).encode() + b"\n")
    return digest.hexdigest()

"""The best step so far, and when to stop early: decided from the rows of `metrics.jsonl` alone.

A resumed run therefore decides like an uninterrupted one. Of several rows of a step, the last counts. The best weights
are the newest in `best/step-NNNNNN`; older ones are kept as long as the run can go back to a checkpoint of their time.
"""

import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from ldm.errors import UserError
from ldm.io.files import manifest_fault, read_json, read_tensors, write_json, write_manifest, write_tensors
from ldm.io.folders import new_folder
from ldm.io.ownership import remove_written

from ..loop.averages import WeightAverages
from .checkpoints import checkpoints, step_of
from .log import read_metrics

Row = Mapping[str, Any]


def validation_losses(rows: Sequence[Row]) -> dict[int, float]:
    """The validation loss of each step that has one, ordered by step; NaN counts as infinite."""
    found = {int(row["step"]): float(row["validation_loss"]) for row in rows if "validation_loss" in row}
    return {step: math.inf if math.isnan(found[step]) else found[step] for step in sorted(found)}


def best_step(rows: Sequence[Row]) -> int | None:
    """The step with the lowest validation loss, the first of equals; None if no loss is finite."""
    losses = validation_losses(rows)
    best = min(losses, key=losses.__getitem__, default=None)
    return best if best is not None and math.isfinite(losses[best]) else None


def should_stop(rows: Sequence[Row], patience: int) -> bool:
    """Whether the last `patience` measurements brought no new best; always false if `patience` is 0."""
    best = best_step(rows)
    since = [step for step in validation_losses(rows) if best is None or step > best]
    return 0 < patience <= len(since)


def keep_best(run_dir: Path, tensors: Mapping[str, Tensor], step: int, rows: Sequence[Row]) -> bool:
    """Write `run_dir/best/step-NNNNNN` if `step` is the best step of `rows`; returns whether it did.

    Args:
        tensors: the averaged weights at `step`.
        rows: of metrics.jsonl, up to and including `step`.

    Raises:
        UserError: the disk is full or not writable; the former best is kept.
    """
    if best_step(rows) != step:
        return False
    with new_folder(run_dir / "best" / f"step-{step:06d}", replace=True) as folder:
        write_tensors(folder / "average.safetensors", tensors)
        write_json(folder / "best.json", {"step": step, "validation_loss": validation_losses(rows)[step]})
        write_manifest(folder)
    prune_best(run_dir)
    return True


def prune_best(run_dir: Path) -> None:
    """Remove weights that are not the best and were not the best at any checkpoint, from which a run may resume."""
    found = checkpoints(run_dir / "best")
    steps = [step_of(each) for each in checkpoints(run_dir / "checkpoints")]
    kept = {_newest([b for b in found if step_of(b) <= step]) for step in steps} | {_newest(found)}
    for each in found:
        if each not in kept:
            remove_written(each)


def _newest(found: Sequence[Path]) -> Path | None:
    return found[-1] if found else None


def read_best(run_dir: Path) -> tuple[int, dict[str, Tensor]]:
    """The best step and its averaged weights, on the CPU.

    Raises:
        UserError: there is none, or it is damaged.
    """
    folder = _newest(checkpoints(run_dir / "best")) or run_dir / "best"
    if fault := manifest_fault(folder):
        raise UserError(f"no best weights: {fault}", "train with validation.every and validation.keep_best")
    return int(read_json(folder / "best.json")["step"]), read_tensors(folder / "average.safetensors")


def apply_best(run_dir: Path, average: WeightAverages) -> None:
    """Make `average` hold the best weights. If no validation loss was finite, keep it, with a warning.

    Raises:
        UserError: the best weights are missing or damaged.
    """
    if best_step(read_metrics(run_dir)) is None:
        print(
            "warning: no validation loss was finite, so there is no best step; using the averaged weights",
            file=sys.stderr,
        )
        return
    step, weights = read_best(run_dir)
    average.replace_applied(weights)
    print(f"the best step was {step}")

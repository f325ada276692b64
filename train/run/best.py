"""The best step so far, and when to stop early: decided from the rows of `metrics.jsonl` alone.

A resumed run therefore decides like an uninterrupted one. Of several rows of a step, the last counts. The best weights
are the newest in `best/step-NNNNNN`; older ones are kept as long as the run can go back to a checkpoint of their time.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, NonNegativeInt
from torch import Tensor

from ldm.errors import UserError
from ldm.io.files import manifest_fault, read_tensors, write_json, write_manifest, write_tensors
from ldm.io.folders import new_folder
from ldm.io.json_files import read_json
from ldm.io.messages import say_warning
from ldm.io.ownership import remove_written

from ..loop.averages import WeightAverages
from .checkpoints import checkpoints, step_of
from .log import read_metrics

Row = Mapping[str, Any]
NUM_RISING = 3
"""After this many validations without a new best, a run warns that it overfits."""


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


def held_out_note(rows: Sequence[Row]) -> str:
    """The last validation loss and the best, for the progress line; empty without one."""
    losses, best = validation_losses(rows), best_step(rows)
    if not losses:
        return ""
    last = max(losses)
    earlier = f" (best {losses[best]:.4f} at step {best})" if best is not None and best != last else ""
    return f"held out {losses[last]:.4f}{earlier}"


def overfitting(rows: Sequence[Row], *, keeps_best: bool) -> str:
    """A warning, if the validation loss is higher than the best and has had no new best for `NUM_RISING` validations.

    It is given once for each best step, because later on there are more validations since.
    """
    losses, best = validation_losses(rows), best_step(rows)
    since = [step for step in losses if best is not None and step > best]
    if best is None or len(since) != NUM_RISING or losses[since[-1]] <= losses[best]:
        return ""
    way_on = (
        "the result will have the weights of the best step, unless a later one is better"
        if keeps_best
        else "set validation.keep_best to keep the best weights, or validation.patience to stop in time"
    )
    rise = f"from {losses[best]:.4f} at step {best} to {losses[since[-1]]:.4f} at step {since[-1]}"
    return (
        f"the loss on the held-out images has risen {rise}: the model begins to memorise its images; {way_on}"
    )


def best_passed(rows: Sequence[Row]) -> str:
    """A warning at the end of a run whose last weights are worse than earlier ones were; empty if they are not."""
    losses, best = validation_losses(rows), best_step(rows)
    if best is None or losses[best] == losses[max(losses)]:
        return ""
    return (
        f"the loss on the held-out images was lowest at step {best} ({losses[best]:.4f}), and at the end it is "
        f"{losses[max(losses)]:.4f}: train again with num_steps={best}, or with validation.keep_best=true"
    )


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


class BestStep(BaseModel):
    """What is read of `best.json`."""

    step: NonNegativeInt


def read_best(run_dir: Path) -> tuple[int, dict[str, Tensor]]:
    """The best step and its averaged weights, on the CPU.

    Raises:
        UserError: there is none, or it is damaged.
    """
    folder = _newest(checkpoints(run_dir / "best")) or run_dir / "best"
    if fault := manifest_fault(folder):
        raise UserError(f"no best weights: {fault}", "train with validation.every and validation.keep_best")
    return read_json(folder / "best.json", BestStep).step, read_tensors(folder / "average.safetensors")


def apply_best(run_dir: Path, average: WeightAverages) -> None:
    """Make `average` hold the best weights. If no validation loss was finite, keep it, with a warning.

    Raises:
        UserError: the best weights are missing or damaged.
    """
    if best_step(read_metrics(run_dir)) is None:
        say_warning("no validation loss was finite, so there is no best step; using the averaged weights")
        return
    step, weights = read_best(run_dir)
    average.replace_applied(weights)
    print(f"the best step was {step}")

"""The best step so far, and when to stop early: decided from the rows of `metrics.jsonl` alone.

A resumed run therefore decides like an uninterrupted one. Of several rows of a step, the last counts. The best weights
are the newest in `best/step-NNNNNN`; older ones are kept as long as the run can go back to a checkpoint of their time.

A row also says how far its measurement lies from the best one before it, with a 95 % interval (`paired_change`). The
best step is the best by value, but a measurement counts towards stopping only if its interval excludes that it is
better.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, NonNegativeInt
from torch import Tensor

from ldm.errors import UserError
from ldm.evaluation.paired import Scores, paired_difference
from ldm.io.files import manifest_fault, read_tensors, write_json, write_manifest, write_tensors
from ldm.io.folders import new_folder
from ldm.io.json_files import read_json
from ldm.io.messages import say_warning
from ldm.io.ownership import remove_written

from ..loop.averages import WeightAverages
from ..loop.validation import Decider
from .checkpoints import checkpoints, step_of
from .log import read_metrics

Row = Mapping[str, Any]
NUM_RISING = 3
"""After this many validations without a new best, a run warns that it overfits."""


@dataclass(frozen=True)
class Measure:
    """A measurement that can decide which step is the best.

    Attributes:
        key: its name in the rows.
        words: its name on the progress line.
        sign: 1 if lower numbers are better, otherwise -1.
    """

    key: str
    words: str
    sign: int = 1


MEASURES: dict[Decider, Measure] = {
    "loss": Measure("validation_loss", "held out"),
    "kid": Measure("kid", "kid"),
    "clip": Measure("clip_score", "clip", sign=-1),
    "judge": Measure("judge", "judge", sign=-1),
}
CHANGE = "_since_best"
"""The suffix of how far a measurement lies from the best before it; with `_low` and `_high` after it, its interval."""


def values_of(rows: Sequence[Row], by: Decider = "loss") -> dict[int, float]:
    """The measurement of each step that has one, ordered by step, signed so that the lowest is the best.

    NaN counts as infinite.
    """
    key, sign = MEASURES[by].key, MEASURES[by].sign
    found = {int(row["step"]): sign * float(row[key]) for row in rows if key in row}
    return {step: math.inf if math.isnan(found[step]) else found[step] for step in sorted(found)}


def best_step(rows: Sequence[Row], by: Decider = "loss") -> int | None:
    """The step with the best measurement, the first of equals; None if none is finite."""
    values = values_of(rows, by)
    best = min(values, key=values.__getitem__, default=None)
    return best if best is not None and math.isfinite(values[best]) else None


def should_stop(rows: Sequence[Row], patience: int, by: Decider = "loss") -> bool:
    """Whether the last `patience` measurements in a row are no better than the best; always false if it is 0.

    A measurement whose interval leaves open that it is better does not count, and the count starts again after it.
    """
    best, possible = best_step(rows, by), _possibly_better(rows, by)
    since = [step for step in values_of(rows, by) if best is None or step > best]
    num_worse = next((number for number, step in enumerate(reversed(since)) if possible[step]), len(since))
    return 0 < patience <= num_worse


def _possibly_better(rows: Sequence[Row], by: Decider) -> dict[int, bool]:
    """For each step, whether its interval leaves open that it is better than the best before it.

    False without an interval: then the value alone decides.
    """
    key, sign = MEASURES[by].key, MEASURES[by].sign
    end = f"{key}{CHANGE}_{'low' if sign > 0 else 'high'}"
    return {int(row["step"]): sign * float(row.get(end, 0.0)) < 0 for row in rows if key in row}


def paired_change(scores: Scores, best: Scores | None, by: Decider) -> dict[str, float]:
    """How far a measurement lies from the best before it, and the 95 % interval, for a row; empty without one."""
    if best is None or len(best.per_image) != len(scores.per_image):
        return {}
    change, name = paired_difference(scores, best).interval(), f"{MEASURES[by].key}{CHANGE}"
    if not (math.isfinite(change.low) and math.isfinite(change.high)):
        return {}
    return {name: change.value, f"{name}_low": change.low, f"{name}_high": change.high}


def progress_note(rows: Sequence[Row]) -> str:
    """The last of each measurement and the best, for the progress line; empty without any."""
    return "  ".join(filter(None, (_note(rows, by) for by in MEASURES)))


def _note(rows: Sequence[Row], by: Decider) -> str:
    values, best, (key, words, sign) = values_of(rows, by), best_step(rows, by), astuple(MEASURES[by])
    if not values:
        return ""
    last = max(values)
    row = next(row for row in reversed(rows) if row["step"] == last and key in row)
    limits = f" [{row[f'{key}_low']:.4f}, {row[f'{key}_high']:.4f}]" if f"{key}_low" in row else ""
    earlier = f" (best {sign * values[best]:.4f} at step {best})" if best is not None and best != last else ""
    return f"{words} {sign * values[last]:.4f}{limits}{earlier}"


def overfitting(rows: Sequence[Row], *, keeps_best: bool) -> str:
    """A warning, if the validation loss is higher than the best and has had no new best for `NUM_RISING` validations.

    It is given once for each best step, because later on there are more validations since.
    """
    losses, best = values_of(rows), best_step(rows)
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
    losses, best = values_of(rows), best_step(rows)
    if best is None or losses[best] == losses[max(losses)]:
        return ""
    return (
        f"the loss on the held-out images was lowest at step {best} ({losses[best]:.4f}), and at the end it is "
        f"{losses[max(losses)]:.4f}: train again with num_steps={best}, or with validation.keep_best=true"
    )


def keep_best(
    run_dir: Path, tensors: Mapping[str, Tensor], step: int, rows: Sequence[Row], by: Decider = "loss"
) -> bool:
    """Write `run_dir/best/step-NNNNNN` if `step` is the best step of `rows`; returns whether it did.

    Args:
        tensors: the averaged weights at `step`.
        rows: of metrics.jsonl, up to and including `step`.

    Raises:
        UserError: the disk is full or not writable; the former best is kept.
    """
    if best_step(rows, by) != step:
        return False
    measure = MEASURES[by]
    with new_folder(run_dir / "best" / f"step-{step:06d}", replace=True) as folder:
        write_tensors(folder / "average.safetensors", tensors)
        write_json(
            folder / "best.json", {"step": step, measure.key: measure.sign * values_of(rows, by)[step]}
        )
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


def apply_best(run_dir: Path, average: WeightAverages, by: Decider = "loss") -> None:
    """Make `average` hold the best weights. If no measurement was finite, keep it, with a warning.

    Raises:
        UserError: the best weights are missing or damaged.
    """
    if best_step(read_metrics(run_dir), by) is None:
        what = "validation loss" if by == "loss" else by
        say_warning(f"no {what} was finite, so there is no best step; using the averaged weights")
        return
    step, weights = read_best(run_dir)
    average.replace_applied(weights)
    print(f"the best step was {step}")

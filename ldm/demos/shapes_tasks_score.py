"""How well a model of drawn scenes edits and inpaints: the share of images that are right; see `task_cases`."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ldm.demos.shapes_edits import held_out_edit, training_edit
from ldm.demos.shapes_edits_judge import agrees_with_edit
from ldm.demos.shapes_holes import agrees_with_hole, hole_for
from ldm.demos.shapes_score import SCORING_SEED
from ldm.demos.task_cases import Case, OnProgress, score_cases
from ldm.errors import UserError
from ldm.pipeline.pipeline import Pipeline

SCORED_TASKS = ("edit", "inpaint", "blended-inpaint")


def edit_case(index: int, size_px: int, *, held_out: bool) -> Case:
    """Edit `index` of those for scoring."""
    edit = (held_out_edit if held_out else training_edit)(SCORING_SEED, index)
    before, after = edit.draw(size_px)
    return Case(edit.kind, edit.instruction, before, None, after, partial(agrees_with_edit, edit))


def hole_case(index: int, size_px: int, *, held_out: bool) -> Case:
    """Hole `index` of those for scoring."""
    hole = hole_for(SCORING_SEED, index, held_out=held_out)
    given, mask, wanted = hole.draw(size_px)
    kind = "one thing" if len(hole.scene.things) == 1 else "one of two"
    verdict = partial(agrees_with_hole, hole, given, mask)
    return Case(kind, hole.scene.caption, given, mask, wanted, verdict)


def score_task(
    pipeline: Pipeline,
    task: str,
    dest: Path,
    *,
    num_cases: int = 200,
    size_px: int = 32,
    limits_only: bool = False,
    settings: Mapping[str, Any] = MappingProxyType({}),
    on_progress: OnProgress = lambda part, done: None,
) -> dict[str, Any]:
    """Write `report.json` and contact sheets into `dest`, a new folder; returns the report of `score_cases`.

    Args:
        task: a name from SCORED_TASKS, which the model must be able to do.
        num_cases: for the held-out and for the seen combinations each, 2 or more.
        size_px: side of the images; that of the training data.
        limits_only: measure only what needs no denoiser, before one is trained: any model with the autoencoder will do.
        settings: further arguments of `Pipeline.generate`, for all images.
        on_progress: called with (part of the report, images of it that are made).

    Raises:
        UserError: the task is not one that is scored, or not one of the model's; there are too few cases; `dest`
            exists, or the disk is full.
    """
    if task not in SCORED_TASKS:
        raise UserError(f"{task!r} is not scored on shapes", f"choose from {', '.join(SCORED_TASKS)}")
    return score_cases(
        pipeline,
        task,
        {part: cases_for(task, part, num_cases, size_px) for part in ("held_out", "seen")},
        dest,
        command=f"python scripts/score_tasks.py {task} --model MODEL --output DIR --size-px {size_px}",
        limits_only=limits_only,
        settings=settings,
        on_progress=on_progress,
    )


def cases_for(task: str, part: str, num_cases: int, size_px: int) -> list[Case]:
    """The first cases of "held_out" or "seen"."""
    case_for = edit_case if task == "edit" else hole_case
    return [case_for(index, size_px, held_out=part == "held_out") for index in range(num_cases)]

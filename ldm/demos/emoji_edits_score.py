"""How well a model edits emoji scenes: the share of held-out and seen edits that are right; see `task_cases`."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ldm.demos.emoji_composed import OBJECTS_FOLDER, read_held_out
from ldm.demos.emoji_edits import EmojiEdit, EmojiEdits
from ldm.demos.emoji_edits_judge import EmojiEditJudge
from ldm.demos.emoji_scenes_drawing import Artwork
from ldm.demos.task_cases import Case, OnProgress, score_cases
from ldm.pipeline.pipeline import Pipeline

SCORING_SEED = 1
"""Training draws its edits from seed 0."""


def read_emoji_edits(composed: Path, size_px: int) -> EmojiEdits:
    """The edits of the objects of a composed dataset, with what it holds out.

    Raises:
        UserError: a file is missing or damaged.
    """
    return EmojiEdits(Artwork.read(composed / OBJECTS_FOLDER, size_px), read_held_out(composed))


def score_emoji_edits(
    pipeline: Pipeline,
    composed: Path,
    dest: Path,
    *,
    num_cases: int = 200,
    limits_only: bool = False,
    settings: Mapping[str, Any] = MappingProxyType({}),
    on_progress: OnProgress = lambda part, done: None,
) -> dict[str, Any]:
    """Write `report.json` and contact sheets into `dest`, a new folder; returns the report of `score_cases`.

    Args:
        composed: the composed dataset, for its objects and what it holds out.
        num_cases: for the held-out and for the seen combinations each, 2 or more.

    Raises:
        UserError: the model does another task; there are too few cases; `dest` exists, the data is incomplete, or the
            disk is full.
    """
    edits = read_emoji_edits(composed, pipeline.defaults.height or 64)
    judge = EmojiEditJudge(edits.artwork)
    cases = {
        "held_out": [_case(edits.testing(SCORING_SEED, index), judge) for index in range(num_cases)],
        "seen": [_case(edits.training(SCORING_SEED, index), judge) for index in range(num_cases)],
    }
    return score_cases(
        pipeline,
        "edit",
        cases,
        dest,
        command="python scripts/score_emoji_edits.py --model MODEL --data data/emoji-composed-64 --output DIR "
        f"--num-cases {num_cases}",
        limits_only=limits_only,
        settings=settings,
        on_progress=on_progress,
    )


def _case(edit: EmojiEdit, judge: EmojiEditJudge) -> Case:
    before, after = edit.draw(judge.artwork)
    return Case(edit.kind, edit.instruction, before, None, after, partial(judge.agrees, edit))

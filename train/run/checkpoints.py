"""Folders named after steps: which there are, which is the newest whole checkpoint, and which may go."""

import re
import shutil
from collections.abc import Collection
from pathlib import Path

from ldm.errors import UserError
from ldm.io.files import manifest_fault

NAME = re.compile(r"step-(\d+)")
DATA_FILE = "data.json"
"""In a checkpoint, the fingerprint of what the run is trained on; a run on a stream has none."""


def step_of(checkpoint: Path) -> int:
    """The optimizer step that a checkpoint folder is named after."""
    match = NAME.fullmatch(checkpoint.name)
    assert match
    return int(match[1])


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoint folders, oldest first; or others of steps, such as those of snapshots."""
    return sorted((p for p in folder.glob("step-*") if NAME.fullmatch(p.name) and p.is_dir()), key=step_of)


def newest_whole(folder: Path) -> tuple[Path | None, dict[Path, str]]:
    """The newest checkpoint that verifies, and what is wrong with each newer one.

    Raises:
        UserError: there are checkpoints and none of them is whole; a fresh start would hide the loss.
    """
    faults: dict[Path, str] = {}
    found = checkpoints(folder)
    for checkpoint in reversed(found):
        fault = manifest_fault(checkpoint)
        if fault is None:
            return checkpoint, faults
        faults[checkpoint] = fault
    if found:
        raise UserError(
            f"no checkpoint is whole: {faults[found[-1]]}", f"restore it, or remove {folder} to start afresh"
        )
    return None, faults


def remove_old(newest: Path, keep_last: int, keep_every: int | None, damaged: Collection[Path] = ()) -> None:
    """Remove what the checkpoint `newest`, just verified, makes superfluous.

    The newest `keep_last` stay, and those at multiples of `keep_every`; no damaged ones, nor those of a later step:
    the run came back from before them.
    """
    step = step_of(newest)
    found = checkpoints(newest.parent)
    reached = [c for c in found if c == newest or (step_of(c) < step and c not in damaged)]
    kept = {*reached[-keep_last:], *(c for c in reached if keep_every and step_of(c) % keep_every == 0)}
    for checkpoint in found:
        if checkpoint not in kept:
            shutil.rmtree(checkpoint)


def remove_after(folder: Path, step: int) -> list[Path]:
    """Remove the folders of steps after `step`, which a run that goes on from there does again; returns them."""
    later = [each for each in checkpoints(folder) if step_of(each) > step]
    for each in later:
        shutil.rmtree(each)
    return later

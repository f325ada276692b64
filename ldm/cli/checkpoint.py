"""Use a training checkpoint where a model is expected: the training program that wrote it converts it."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ldm.errors import UserError
from ldm.io.temporary import working_folder

FOLDER = re.compile(r"step-\d+")


@contextmanager
def model_of(source: str, weights: str | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
    """The arguments of `ldm.export.export_source.load_source` for a model, a run or a checkpoint.

    A checkpoint is written as a temporary model. An unfinished run stands for its newest checkpoint.

    Args:
        weights: which weights of a checkpoint: "average", "trained" or a width.

    Raises:
        UserError: the checkpoint cannot be read, or `weights` is given for a model that has only one kind.
    """
    checkpoint = find_checkpoint(Path(source).expanduser(), always=weights is not None)
    if checkpoint is None:
        if weights is not None:
            raise UserError(f"{source} has no checkpoint", "omit --weights, or name a run or checkpoint")
        yield source, {}
        return
    run = checkpoint.absolute().parents[1]
    with working_folder("checkpoint") as temporary:
        model_id = f"{run.name}-{checkpoint.name}"
        folder = temporary / model_id  # a model's id is its folder's name
        _write_model(checkpoint, folder, weights or "average")
        yield str(folder), {"model_id": model_id, "run": run}


def find_checkpoint(path: Path, *, always: bool) -> Path | None:
    """The checkpoint at a path, or the newest one of an unfinished run; None if there is none.

    Args:
        always: take the newest checkpoint of a finished run, too.
    """
    if FOLDER.fullmatch(path.name) and (path / "state.json").is_file():
        return path
    if (path / "pipeline").is_dir() and not always:
        return None
    found = [each for each in path.glob("checkpoints/step-*") if (each / "state.json").is_file()]
    return max(found, key=lambda each: int(each.name.removeprefix("step-")), default=None)


def _write_model(checkpoint: Path, folder: Path, weights: str) -> None:
    from ldm.cli.programs import find_home

    home = find_home()
    command = [
        sys.executable,
        "-m",
        f"{home.package}.run.from_checkpoint",
        str(checkpoint),
        str(folder),
        weights,
    ]
    done = subprocess.run(command, env=home.environment(os.environ), capture_output=True, text=True)
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["no message"])[-1].removeprefix("error: ")
        raise UserError(f"{checkpoint}: {said}")

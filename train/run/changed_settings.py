"""How a run's settings changed when it was resumed, a row each in `changed_settings.jsonl`: `ldm forget` cannot repeat
such a change, and says so.

Runs of earlier versions have no such file, and a configuration may be edited in place. The logged learning rates tell
at least whether the schedule was another.
"""

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from ldm.evaluation.curves import read_metrics
from ldm.io.files import write_bytes

from ..loop.optim import learning_rate_at
from ..settings.shared import TrainSettings
from .resume import Difference

CHANGED_SETTINGS = "changed_settings.jsonl"
WITHOUT_TRACE = {
    "run_dir",
    "fork_from",
    "trackers",
    "max_bad_steps",
    "keep_checkpoints",
    "keep_every",
    "save_every",
    "data.num_workers",
}
"""Settings that change no weight and no logged number of a run that is resumed."""


def record_changes(run_dir: Path, step: int, changed: Sequence[Difference]) -> None:
    """Add the settings that a run is resumed with at `step` and that were others before.

    Raises:
        UserError: the file is damaged.
    """
    rows = [
        {"step": step, "key": each.key, "before": each.before, "now": each.now}
        for each in changed
        if each.key not in WITHOUT_TRACE
    ]
    if rows:
        path = run_dir / CHANGED_SETTINGS
        lines = [json.dumps(row) + "\n" for row in (*read_metrics(path), *rows)]
        write_bytes(path, "".join(lines).encode())


def settings_changed_after(run_dir: Path, settings: TrainSettings, step: int) -> list[str]:
    """What was different in a run's steps after `step` from its settings now, a clause each; empty if nothing is known.

    Raises:
        UserError: one of the run's files is damaged.
    """
    recorded = [
        f"{row.get('key')} was {row.get('before')!r} until step {row['step']}"
        for row in read_metrics(run_dir / CHANGED_SETTINGS)
        if row["step"] > step
    ]
    return recorded or list(_other_learning_rate(run_dir, settings, step))


def _other_learning_rate(run_dir: Path, settings: TrainSettings, step: int) -> Iterator[str]:
    """The first logged step whose learning rate does not follow from the settings."""
    for row in read_metrics(run_dir):
        logged = row.get("learning_rate")
        if logged is None or row["step"] <= step:
            continue
        expected = learning_rate_at(row["step"] - 1, settings.num_steps, settings.optim)
        if not math.isclose(logged, expected, rel_tol=1e-9):
            yield f"the learning rate of step {row['step']} was {logged:g} and would now be {expected:g}"
            return

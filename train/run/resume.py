"""Resuming a run: which settings may change, that its data may not, and new runs from the weights of another."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldm.config import read_yaml, validate
from ldm.data.fingerprint import Fingerprint, decode_fingerprint
from ldm.errors import UserError
from ldm.io.files import MANIFEST, manifest_fault
from ldm.io.opening import MAX_TEXT_BYTES, read_bytes

from ..settings.shared import TrainSettings
from .checkpoints import DATA_FILE, checkpoints, newest_whole, step_of

MAY_CHANGE = {
    "num_steps",
    "max_bad_steps",
    "keep_checkpoints",
    "max_micro_batch",
    "device",
    "sharding",
    "compile",
    "data.num_workers",
    "run_dir",
    "fork_from",
    "trackers",
}
"""What may change when a run is resumed, besides the intervals: what is reported and kept and how long it runs, but not
what is computed."""


@dataclass(frozen=True)
class Difference:
    """A setting that has changed since the run was started."""

    key: str
    before: Any
    now: Any

    @property
    def allowed(self) -> bool:
        """Whether the run may be resumed with it."""
        name = self.key.rpartition(".")[2]
        return self.key in MAY_CHANGE or name == "every" or name.endswith("_every")

    def __str__(self) -> str:
        return f"{self.key} was {self.before!r}, now {self.now!r}"


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[Difference]:
    """The settings that differ between two trees, by their dotted keys."""
    old, new = dict(_leaves(before)), dict(_leaves(now))
    changed = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
    return [Difference(key, old.get(key), new.get(key)) for key in changed]


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def changed_settings(settings: TrainSettings) -> list[Difference]:
    """How the settings differ from those a run was last trained with; empty if there is nothing to resume."""
    path = settings.run_dir / "config.yaml"
    if not (path.is_file() and checkpoints(settings.run_dir / "checkpoints")):
        return []
    return differences(_saved(settings, path), settings.model_dump(mode="json"))


def check_resumable(settings: TrainSettings) -> list[str]:
    """The changed settings of a run that is resumed, a line each; empty if there is nothing to resume.

    Raises:
        UserError: the change would make it another run, or the run is already past its last step.
    """
    found, changed = checkpoints(settings.run_dir / "checkpoints"), changed_settings(settings)
    refused = [str(each) for each in changed if not each.allowed]
    if refused:
        raise UserError(
            f"{settings.run_dir} was started with other settings: {', '.join(refused)}",
            "use the same settings to resume, or `ldm train CONFIG --fork NEW_DIR` for a new run from its weights",
        )
    if found and step_of(found[-1]) > settings.num_steps:
        raise UserError(
            f"num_steps = {settings.num_steps}, but {settings.run_dir} is at step {step_of(found[-1])}",
            "set at least that many, or another run_dir",
        )
    return [str(each) + _consequence(each, settings) for each in changed if each.key != "run_dir"]


def _saved(settings: TrainSettings, path: Path) -> dict[str, Any]:
    """The settings that a run was started with; settings added to this program since then have their defaults."""
    tree = read_yaml(path)
    try:
        return validate(type(settings), tree).model_dump(mode="json")
    except UserError:  # a setting that no longer exists: it will be named among the differences
        return tree


def _consequence(changed: Difference, settings: TrainSettings) -> str:
    if changed.key == "num_steps" and settings.optim.lr_schedule != "constant":
        return "; the learning-rate schedule changes from here on"
    return ""


def check_same_data(run_dir: Path, data: Fingerprint) -> list[str]:
    """Check that a run was trained on `data` so far; returns a line if its checkpoints do not record that.

    All checkpoints of a run record the same, so damaged ones are skipped.

    Raises:
        UserError: samples were added, removed, changed or reordered, which would make it another run.
    """
    found = checkpoints(run_dir / "checkpoints")
    before = next((known for each in reversed(found) if (known := _trained_on(each))), None)
    if before is None:
        return ["the checkpoints do not record their training data, so it was not compared"] if found else []
    if changes := data.changes_since(before):
        raise UserError(
            f"the data has changed since {run_dir} was started: {changes}",
            "restore the old data, or use `ldm train CONFIG --fork NEW_DIR` for a new run from its weights",
        )
    return []


def _trained_on(checkpoint: Path) -> Fingerprint | None:
    try:
        return decode_fingerprint(read_bytes(checkpoint / DATA_FILE, MAX_TEXT_BYTES))
    except OSError:  # damaged, or from a version without fingerprints
        return None


def fork_source(settings: TrainSettings) -> Path | None:
    """The checkpoint whose weights a new run starts from: `fork_from`, or the newest undamaged one of that run.

    Raises:
        UserError: there is none, it is damaged, or it belongs to this run.
    """
    source = settings.fork_from
    if source is None:
        return None
    if source.resolve() == settings.run_dir.resolve():
        raise UserError(f"fork_from = {source} is the run itself", "give the new run another run_dir")
    if (source / "weights.safetensors").is_file() or (source / MANIFEST).is_file():
        if fault := manifest_fault(source):
            raise UserError(f"fork_from: {fault}", "choose another checkpoint")
        return source
    newest, _ = newest_whole(source / "checkpoints")
    if newest is None:
        raise UserError(f"fork_from = {source} holds no checkpoint", "name a run's directory or a checkpoint")
    return newest

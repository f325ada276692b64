"""Forgetting by replay: a run as it would be if it never had some of its samples. `ldm forget` starts it.

A new run begins at the last checkpoint before the samples were first used, and trains on without them. With
`data.order = keyed` the batches up to there are the same with and without them, and every draw of another sample is
keyed by its own id, so the new run equals, to the last bit, one that never had them: exact unlearning by replaying
(Bourtoule et al. 2021 retrain shards in the same spirit).

Run as `python -m train.run.forget plan|write RUN NEW_RUN SAMPLE_ID...`.
"""

import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from ldm.config import to_yaml
from ldm.data.duplicates import near_duplicates
from ldm.data.fingerprint import Fingerprint, decode_fingerprint
from ldm.data.leave_out import LeftOut, first_id, hashed_id, unknown_sample
from ldm.data.prepare import BucketedSample, holdout_split
from ldm.errors import UserError
from ldm.evaluation.curves import METRICS, read_metrics
from ldm.io.files import MANIFEST, check_free_space, manifest_fault, write_bytes, write_json, write_manifest
from ldm.io.folders import is_taken, new_folder
from ldm.io.messages import say_error
from ldm.io.opening import MAX_TEXT_BYTES, read_bytes

from ..data.denoiser_data import read_training_data
from ..data.read import TrainingData
from ..denoiser import make_model
from ..settings.denoiser import DenoiserSettings
from .changed_settings import CHANGED_SETTINGS, settings_changed_after
from .checkpoints import DATA_FILE, checkpoints, step_of
from .from_checkpoint import settings_of_run
from .history import BAD_STEPS
from .run import Run

FORGOTTEN = "forgotten.json"
"""In the new run: what was forgotten, by the hash of its id, and where the replay began."""
FORGOTTEN_VERSION = 1
_NUM_NAMED = 3


@dataclass(frozen=True)
class Replay:
    """How some samples are forgotten.

    Attributes:
        settings: of the new run, without its directory.
        checkpoint: of the old run, which the new one begins with.
        data: fingerprint of the samples that are kept.
        num_samples: how many are forgotten; repeats count.
        first_used: the first step, from 1, that they make a difference to.
        sec: about how long the replay takes; None if the run has not logged any times.
        changed_settings: what was different in the steps that are replayed, see `settings_changed_after`.
        notes: what the user should know, a line each.
    """

    settings: DenoiserSettings
    checkpoint: Path
    data: Fingerprint
    num_samples: int
    first_used: int
    sec: float | None
    changed_settings: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def num_steps(self) -> int:
        """Steps to train again."""
        return self.settings.num_steps - step_of(self.checkpoint)

    def facts(self) -> dict[str, Any]:
        """The replay as JSON."""
        return {
            "num_samples": self.num_samples,
            "first_used_step": self.first_used,
            "from_step": step_of(self.checkpoint),
            "num_steps": self.num_steps,
            "elapsed_sec": self.sec,
            "changed_settings": list(self.changed_settings),
            "notes": [*self._settings_note(), *self.notes],
        }

    def _settings_note(self) -> Iterator[str]:
        if self.changed_settings:
            yield (
                f"{'; '.join(self.changed_settings)}: the replay has the latest settings in all of its steps, so it "
                "does not equal this run as it would have been without the samples"
            )


# What changes


@dataclass(frozen=True)
class Split:
    """The training and the held-out samples of a run."""

    train: Sequence[BucketedSample]
    held_out: Sequence[BucketedSample]

    @property
    def masked(self) -> bool:
        """Whether its batches have loss masks."""
        return any(one.sample.loss_mask is not None for one in self.train)

    def batches(self, run: Run) -> Iterator[list[tuple[int, str]]]:
        """The epoch and id of each sample of each global batch, step by step."""
        ids = [one.sample.sample_id for one in self.train]
        for batch in run.order([one.size for one in self.train], 0, ids):
            yield [(key.epoch, ids[key.sample_index]) for key in batch]


def first_changed_step(run: Run, before: Split, after: Split) -> int | None:
    """The first step, from 1, whose batch or measurement differs between two sets of samples; None if none does."""
    steps = [_first_measurement(run)] if _ids(before.held_out) != _ids(after.held_out) else []
    if before.masked != after.masked:
        steps.append(1)
    elif _ids(before.train) != _ids(after.train):
        pairs = zip(before.batches(run), after.batches(run), strict=True)
        steps += islice((step for step, (old, new) in enumerate(pairs, 1) if old != new), 1)
    return min((step for step in steps if step is not None), default=None)


def _first_measurement(run: Run) -> int | None:
    """The first step after which the held-out samples are measured."""
    validation, last = run.settings.validation, run.settings.num_steps
    return min(
        (min(every, last) for every in (validation.every, validation.evaluate_every) if every), default=None
    )


def _ids(placed: Sequence[BucketedSample]) -> list[str]:
    return [one.sample.sample_id for one in placed]


# Planning


def plan_replay(run_dir: Path, sample_ids: Sequence[str]) -> Replay:
    """Where forgetting some samples of a run has to begin, and what it costs. Nothing is written.

    Args:
        sample_ids: as in the run's data report. A sample that is repeated is forgotten with all of its repeats.

    Raises:
        UserError: the run cannot be replayed, an id is unknown, or no checkpoint from before the first use is kept.
    """
    settings = settings_of_run(run_dir)
    _check_replayable(settings)
    found = checkpoints(run_dir / "checkpoints")
    if not found:
        raise UserError(f"{run_dir} has no checkpoint", "nothing was learned; remove the samples and train")
    run = Run(settings, planning=True)
    data = read_training_data(run, settings, make_model(run, settings)[0])
    left_out = left_out_of(settings, data, sample_ids)
    kept = [one for one in data.prepared.placed if not left_out.has(one.sample.sample_id)]
    split = Split(*holdout_split(kept, settings.data.holdout_fraction, settings.seed))
    if not split.train:
        raise UserError("no image would be left to train on", "remove the run instead")
    first = first_changed_step(run, Split(data.train, data.held_out), split)
    if first is None or first > step_of(found[-1]):
        raise UserError(
            f"{run_dir} has not used these samples in its {step_of(found[-1])} steps",
            "there is nothing to forget",
        )
    added = sorted({hashed_id(each) for each in left_out.entries})
    everything = tuple(dict.fromkeys((*settings.data.leave_out, *added)))
    new = settings.model_copy(update={"data": settings.data.model_copy(update={"leave_out": everything})})
    checkpoint = checkpoint_before(found, first, new)
    named = {id_ for id_ in data.fingerprint.samples if left_out.has(id_)}
    return Replay(
        new,
        checkpoint,
        Fingerprint({id_: each for id_, each in data.fingerprint.samples.items() if id_ not in named}),
        len(named),
        first,
        _seconds(run_dir, settings.num_steps - step_of(checkpoint)),
        tuple(settings_changed_after(run_dir, settings, step_of(checkpoint))),
        tuple(_notes(settings, data.prepared.placed, named)),
    )


def _check_replayable(settings: DenoiserSettings) -> None:
    if settings.data.order != "keyed":
        raise UserError(
            f"data.order = {settings.data.order} in {settings.run_dir}: without a sample all others would move",
            "only a run with data.order = keyed can forget; train again without the sample (data.leave_out)",
        )
    if settings.base is None and settings.path == "edm" and settings.edm.sigma_data is None:
        raise UserError(
            "edm.sigma_data was measured on all images", "train with a number for it to be able to forget"
        )


def left_out_of(settings: DenoiserSettings, data: TrainingData, sample_ids: Sequence[str]) -> LeftOut:
    """The samples that are to be forgotten.

    Raises:
        UserError: the run has no sample of that id.
    """
    repeated = any(source.repeats > 1 for source in settings.data.all_sources())
    left_out = LeftOut(frozenset(map(first_id, sample_ids) if repeated else sample_ids), repeated)
    if unknown := sorted(left_out.unmatched(data.fingerprint.samples)):
        what = unknown_sample(unknown[0], data.fingerprint.samples)
        raise UserError(f"{settings.run_dir}: {what}", "ids are in its data_report.json")
    return left_out


def checkpoint_before(found: Sequence[Path], first: int, settings: DenoiserSettings) -> Path:
    """The newest undamaged checkpoint from before step `first`.

    Raises:
        UserError: none is kept.
    """
    for checkpoint in reversed(found):
        if step_of(checkpoint) < first and manifest_fault(checkpoint) is None:
            return checkpoint
    entries = json.dumps(list(settings.data.leave_out), separators=(",", ":"))
    raise UserError(
        f"the samples are first used in step {first}, and the earliest checkpoint is of step {step_of(found[0])}: "
        f"forgetting is the whole training of {settings.num_steps} steps",
        f"train with data.leave_out={entries} in a new run_dir; keep_every keeps early checkpoints",
    )


def _seconds(run_dir: Path, num_steps: int) -> float | None:
    """How long steps take, from the times that the run has logged."""
    timed = [row for row in read_metrics(run_dir) if row.get("elapsed_sec") and row["step"]]
    return round(timed[-1]["elapsed_sec"] / timed[-1]["step"] * num_steps, 1) if timed else None


# What forgetting does not reach


def _notes(
    settings: DenoiserSettings, placed: Sequence[BucketedSample], forgotten: set[str]
) -> Iterator[str]:
    """Where the forgotten images may still be: equal or similar images, and other models trained on them."""
    groups = near_duplicates({one.sample.sample_id: one.facts.perceptual_hash for one in placed})
    hashes = {one.facts.content_hash for one in placed if one.sample.sample_id in forgotten}
    same = {one.sample.sample_id for one in placed if one.facts.content_hash in hashes} - forgotten
    alike = {id_ for group in groups if forgotten.intersection(group) for id_ in group} - forgotten - same
    if same:
        yield f"{_counted(same)} the same image and will still be learned: {_named(same)}"
    if alike:
        yield f"{_counted(alike)} a similar image and will still be learned: {_named(alike)}"
    for key, folder in _ancestors(settings):
        if _trained_on(folder) & forgotten:
            yield f"{key} = {folder} was trained on a forgotten sample and stays as it is"


def _counted(ids: set[str]) -> str:
    return "1 other sample has" if len(ids) == 1 else f"{len(ids)} other samples have"


def _named(ids: set[str]) -> str:
    return ", ".join(map(repr, sorted(ids)[:_NUM_NAMED])) + (", ..." if len(ids) > _NUM_NAMED else "")


def _ancestors(settings: DenoiserSettings) -> Iterator[tuple[str, Path]]:
    """The folders of other runs that this one stands on, each with its setting."""
    if settings.parts is not None:
        yield "parts.autoencoder", settings.parts.autoencoder
        yield "parts.text_encoder", settings.parts.text_encoder
    if settings.base is not None:
        yield "base", Path(settings.base)
    if settings.fork_from is not None:
        yield "fork_from", settings.fork_from


def _trained_on(folder: Path) -> set[str]:
    """The ids of the samples of a run, given its directory or one inside it; empty for anything else."""
    for place in (folder, *list(folder.parents)[:2]):
        for checkpoint in checkpoints(place / "checkpoints")[-1:]:
            if (checkpoint / DATA_FILE).is_file():
                known = decode_fingerprint(read_bytes(checkpoint / DATA_FILE, MAX_TEXT_BYTES))
                return set(known.samples) if known else set()
    return set()


# The new run


def write_replay(replay: Replay, run_dir: Path, new_dir: Path) -> None:
    """Write the new run's directory as it was at the checkpoint, with the settings and data without the samples.

    Raises:
        UserError: there is something at `new_dir`, or the disk is full.
    """
    step = step_of(replay.checkpoint)
    folders = [
        each for name in ("averages", "best") for each in checkpoints(run_dir / name) if step_of(each) <= step
    ]
    size = sum(file.stat().st_size for each in (replay.checkpoint, *folders) for file in each.iterdir())
    new_dir.parent.mkdir(parents=True, exist_ok=True)
    check_free_space(new_dir.parent, size)
    settings = replay.settings.model_copy(update={"run_dir": new_dir})
    with new_folder(new_dir, manifest=False) as folder:
        write_bytes(folder / "config.yaml", to_yaml(settings).encode())
        for name in (METRICS, BAD_STEPS, CHANGED_SETTINGS):
            if (run_dir / name).is_file():
                rows = [json.dumps(row) + "\n" for row in read_metrics(run_dir / name) if row["step"] <= step]
                write_bytes(folder / name, "".join(rows).encode())
        for each in folders:
            shutil.copytree(each, folder / each.parent.name / each.name)
        _copy_checkpoint(replay, folder / "checkpoints" / replay.checkpoint.name)
        write_json(folder / FORGOTTEN, _record(replay))


def _copy_checkpoint(replay: Replay, dest: Path) -> None:
    """The checkpoint, with the fingerprint of the samples that are kept."""
    shutil.copytree(replay.checkpoint, dest)
    write_bytes(dest / DATA_FILE, replay.data.encoded)
    (dest / MANIFEST).unlink()
    write_manifest(dest)


def _record(replay: Replay) -> dict[str, Any]:
    """What was forgotten, without naming it; the notes name samples."""
    facts = replay.facts()
    del facts["notes"], facts["elapsed_sec"]
    return {"version": FORGOTTEN_VERSION, "samples": list(replay.settings.data.leave_out), **facts}


def main(argv: Sequence[str] | None = None) -> int:
    """Plan a replay, and write the new run's directory if asked; returns the exit code."""
    what, run_dir, new_dir, *sample_ids = sys.argv[1:] if argv is None else argv
    try:
        if is_taken(Path(new_dir)):
            raise UserError(f"{new_dir} exists already", "choose another place with --run-dir")
        replay = plan_replay(Path(run_dir), sample_ids)
        if what == "write":
            write_replay(replay, Path(run_dir), Path(new_dir))
    except UserError as error:
        say_error(str(error))
        return 2
    print(json.dumps({"run": run_dir, "new_run": new_dir, **replay.facts()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""A run's directory: one run at a time, and never the user's images or other files."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

from ldm.config import read_yaml, to_yaml
from ldm.data.cache.cache_folder import CacheSettings
from ldm.data.fingerprint import Fingerprint
from ldm.data.sources.scan import refuse_inside
from ldm.errors import UserError
from ldm.io.files import disk_errors, write_bytes
from ldm.io.folders import remove_leftovers
from ldm.io.locks import LOCK, FolderLock, is_lock
from ldm.io.ownership import NOBODYS

from ..settings.shared import TrainSettings
from .changed_settings import record_changes
from .checkpoints import checkpoints, remove_after, step_of
from .held_model import HeldModel, check_same_model
from .resume import changed_settings, check_resumable, check_same_data

PROGRAMS = get_args(TrainSettings.model_fields["program"].annotation)
MAY_EXIST_BEFORE = {"data_report"}
"""What a new run's directory may already contain: `ldm data check --report` may write there."""


@dataclass
class RunDirectory:
    """The directory of a run. The checks come first; nothing is written before `open`."""

    settings: TrainSettings
    _lock: FolderLock | None = field(init=False, default=None)

    @property
    def path(self) -> Path:
        return self.settings.run_dir

    def lock_existing(self) -> None:
        """Lock the directory, if there is one, for the life of this process.

        Raises:
            UserError: another run uses it.
        """
        if self.path.is_dir():
            self._lock = FolderLock(self.path)
            self._clear()  # before anything asks for free space

    def open(self, data: Fingerprint | None, model: HeldModel | None = None) -> None:
        """Create the directory and record the settings. Called only once everything that can be wrong was checked.

        Args:
            data: fingerprint of the training data, if all of it is known.
            model: what the run stands on, if it starts from any model.

        Raises:
            UserError: the disk is full or not writable, or another run has been there in the meantime.
        """
        with disk_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        if self._lock is None:
            self._lock = FolderLock(self.path)
            check_resumable(self.settings)  # another run may have come and gone since the first check
            if data is not None:
                check_same_data(self.path, data)
            if model is not None:
                check_same_model(self.path, model)
        self._clear()
        if found := checkpoints(self.path / "checkpoints"):
            record_changes(self.path, step_of(found[-1]), changed_settings(self.settings))
        write_bytes(self.path / "config.yaml", to_yaml(self.settings).encode())

    def _clear(self) -> None:
        """Remove what a killed process left."""
        for folder in (self.path, *(self.path / name for name in ("checkpoints", "averages", "best"))):
            with disk_errors(folder):
                remove_leftovers(folder)

    def remove_results_after(self, step: int) -> list[str]:
        """Remove the results of later steps, which will be repeated, perhaps with other settings; a line for each."""
        return [
            f"{name}: removed the results of steps after {step}: {', '.join(each.name for each in later)}"
            for name in ("averages", "best")
            if (later := remove_after(self.path / name, step))
        ]


def check_outputs(settings: TrainSettings) -> None:
    """Refuse to write where the user's files are.

    Raises:
        UserError: the run's directory contains files that are not a run's; or it or the cache is inside the data.
    """
    _refuse_foreign(settings.run_dir)
    written = {"run_dir": settings.run_dir}
    cache: CacheSettings | None = getattr(settings, "cache", None)  # not every program has one
    if cache is not None:
        written["cache.folder"] = cache.root()
    for data in _data_folders(settings):
        for key, folder in written.items():
            refuse_inside(f"{key} = {folder}", folder, data)


def _refuse_foreign(run_dir: Path) -> None:
    if run_dir.exists() and not run_dir.is_dir():
        raise UserError(f"run_dir = {run_dir} is a file", "name a folder")
    if not run_dir.is_dir() or _is_run(run_dir):
        return
    found = sorted(path.name for path in run_dir.iterdir() if path.name not in MAY_EXIST_BEFORE)
    foreign = [name for name in found if not NOBODYS.fullmatch(name)]  # a new disk has a lost+found
    if foreign:
        what = f"run_dir = {run_dir} contains {foreign[0]!r} and is not the folder of a training run"
        raise UserError(what, "name a new folder, because a run replaces files in its folder")


def _is_run(folder: Path) -> bool:
    """A run's directory has a lock from the start; a copy without it has these two files.

    A configuration of another program, under the same name, does not make a run.
    """
    config = folder / "config.yaml"
    if config.is_file() and not _is_run_config(config):
        return False
    return is_lock(folder / LOCK) or (config.is_file() and (folder / "metrics.jsonl").is_file())


def _is_run_config(path: Path) -> bool:
    try:
        settings = read_yaml(path)
    except UserError:
        return False
    return "run_dir" in settings and settings.get("program") in PROGRAMS


def _data_folders(settings: TrainSettings) -> Iterator[Path]:
    """The folders that images and masks are read from; a source may also be a file, or a name on the Hub."""
    for source in settings.data.all_sources():
        for path in (Path(source.path), source.masks):
            if path is not None and path.expanduser().is_dir():
                yield path.expanduser()

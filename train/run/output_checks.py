"""Where a run writes: into a folder of its own, and never among the user's images or other files."""

from collections.abc import Iterator
from pathlib import Path

from ldm.data.cache.cache_folder import CacheSettings
from ldm.data.sources.scan import refuse_inside
from ldm.errors import UserError
from ldm.io.locks import LOCK

from ..settings.shared import TrainSettings

BEFOREHAND = {"data_report"}
"""What may lie in a run's folder before the run: `ldm data check --report` may have been pointed there."""


def check_places(settings: TrainSettings) -> None:
    """Refuse to write where files of the user's are.

    Raises:
        UserError: the run's folder holds something and is no run's; or it, or the cache, lies inside the data.
    """
    _refuse_foreign(settings.run_dir)
    written = {"run_dir": settings.run_dir}
    cache: CacheSettings | None = getattr(settings, "cache", None)  # not every program has one
    if cache is not None:
        written["cache.folder"] = cache.root()
    for data in _data_folders(settings):
        for key, place in written.items():
            refuse_inside(f"{key} = {place}", place, data)


def _refuse_foreign(run_dir: Path) -> None:
    if run_dir.exists() and not run_dir.is_dir():
        raise UserError(f"run_dir = {run_dir} is a file", "name a folder")
    if not run_dir.is_dir() or _is_run(run_dir):
        return
    foreign = sorted(path.name for path in run_dir.iterdir() if path.name not in BEFOREHAND)
    if foreign:
        what = f"run_dir = {run_dir} holds {foreign[0]!r} and is no training run's folder"
        raise UserError(what, "name a new folder, for a run replaces files in its own")


def _is_run(folder: Path) -> bool:
    """It has its lock from the beginning; where one was copied without it, it has these two."""
    return (folder / LOCK).exists() or all(
        (folder / name).is_file() for name in ("config.yaml", "metrics.jsonl")
    )


def _data_folders(settings: TrainSettings) -> Iterator[Path]:
    """The folders that images and masks are read from; a source may also be a file, or a name on the Hub."""
    for source in settings.data.all_sources():
        for path in (Path(source.path), source.masks):
            if path is not None and path.expanduser().is_dir():
                yield path.expanduser()

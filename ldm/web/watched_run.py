"""A training run that the server watches: what its folder holds, read anew whenever somebody asks."""

import math
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldm.config import read_yaml
from ldm.errors import UserError
from ldm.io.json_files import read_object
from ldm.io.locks import holder
from ldm.io.opening import read_bytes
from ldm.web.loss_curves import LossCurves, number
from ldm.web.queue import NotFound
from ldm.web.training import OutputLog, Training

RESULTS = ("pipeline", "autoencoder", "text_encoder")
"""The folders that the training programs write at their end."""
PAGES = {"data-report": "data_report.html", "ledger": "ledger/ledger.html"}
"""The pages that a run's folder may hold, by their names in URLs."""
LEDGER = "ledger/ledger.json"
PREVIEW = re.compile(r"step-(\d{1,15})\.png")
PREVIEW_COLUMNS = 8
"""Of the grid of a preview; see `train.run.preview.write_preview`."""
MOST_PREVIEWS = 300
MOST_SAMPLES = 20
MAX_FILE_BYTES = 64 * 2**20
MAX_LETTERS = 300


@dataclass(frozen=True)
class RunSource:
    """A run that the operator named.

    Attributes:
        name: what the page calls it.
        folder: the run's directory, which may not exist yet.
        config: the configuration that it can be started from; None if only the folder was named.
        command: that trains it; empty without a configuration.
        environment: of that command.
    """

    name: str
    folder: Path
    config: Path | None = None
    command: Sequence[str] = ()
    environment: Mapping[str, str] | None = None


class WatchedRun:
    """A run that is watched, and its training if this server has started one."""

    def __init__(self, source: RunSource) -> None:
        self.source = source
        self.curves = LossCurves(source.folder)
        self.training: Training | None = None
        self.log = OutputLog()
        self._lock = threading.Lock()  # requests are answered in several threads

    @property
    def folder(self) -> Path:
        """The run's directory."""
        return self.source.folder

    # What it does

    def start(self) -> None:
        """Start or resume the training.

        Raises:
            UserError: it trains already, here or elsewhere, or there is no configuration.
        """
        with self._lock:
            if not self.source.command:
                what = f"{self.source.name} was named by its folder"
                raise UserError(what, "start the server with --run CONFIG.yaml to train from the page")
            if self.is_training():
                raise Busy(f"{self.source.name} is training already", "stop it first")
            if found := holder(self.folder):
                raise Busy(f"{self.source.name} is in use by {found}", "wait until it has finished")
            self.training = Training(self.source.command, self.source.environment, self.log)

    def stop(self) -> None:
        """Ask the training to save and end; asking again changes nothing.

        Raises:
            UserError: this server has not started it.
        """
        with self._lock:
            if self.training is None or not self.is_training():
                what = f"{self.source.name} was not started from this page"
                raise Busy(what, "stop it where it was started")
            self.training.stop()

    def is_training(self) -> bool:
        """Whether a training that this server started is running."""
        return self.training is not None and self.training.is_running

    # What it shows

    def summary(self) -> dict[str, Any]:
        """Its state, ready for JSON; `message` says what is wrong with its files."""
        with self._lock:
            message = _fault(self.curves.look)
            state, note = self._state()
            total, step = self.num_steps(), self.curves.last_step
            pace = self.curves.steps_per_sec if state == "running" else None
            return {
                "name": self.source.name,
                "state": state,
                "note": note,
                "message": message,
                "step": step,
                "num_steps": total,
                "steps_per_sec": pace,
                "left_sec": (total - step) / pace if pace and total and total >= step else None,
                "elapsed_sec": finite(self.curves.elapsed_sec),
                "can_start": bool(self.source.command) and state not in ("running", "stopping"),
                "can_stop": self.is_training() and state != "stopping",
                "has_begun": step > 0,
            }

    def points_after(self, step: float, key: str) -> dict[str, Any]:
        """See `LossCurves.points_after`."""
        with self._lock:
            return self.curves.points_after(step, key)

    def _state(self) -> tuple[str, str]:
        """One of not begun, running, stopping, stopped, finished, failed or missing; and more about it."""
        if self.training is not None and self.training.is_running:
            return ("stopping", "saving a checkpoint") if self.training.is_stopping else ("running", "")
        if found := holder(self.folder):
            return "running", f"by {found}"
        if self.training is not None and self.training.has_failed:
            return "failed", f"exit code {self.training.exit_code}"
        if not self.folder.is_dir():
            return ("not begun", "") if self.source.config else ("missing", "its folder is gone")
        if self._is_finished():
            return "finished", ""
        return ("stopped", "") if self._has_begun() else ("not begun", "")

    def _has_begun(self) -> bool:
        return self.curves.last_step > 0 or (self.folder / "checkpoints").is_dir()

    def _is_finished(self) -> bool:
        """Whether all steps are done, or the result was written after the last row: it had stopped improving."""
        total = self.num_steps()
        if total is not None:
            if self.curves.last_step >= total:
                return True
            if self._settings_of_run().get("num_steps") != total:  # more steps are wanted now
                return False
        logged = _time_of(self.curves.path)
        return logged > 0 and any(_time_of(self.folder / name) >= logged for name in RESULTS)

    def num_steps(self) -> int | None:
        """The steps in total: those of the configuration if it can be started here, else those of the run."""
        trees = [self._settings_of_run()]
        if self.source.config is not None and not holder(self.folder):
            trees.insert(0, _settings_in(self.source.config))
        found = (tree.get("num_steps") for tree in trees)
        return next((each for each in found if type(each) is int and each > 0), None)

    def _settings_of_run(self) -> Mapping[str, Any]:
        return _settings_in(self.folder / "config.yaml")

    # Its files

    def previews(self) -> list[tuple[int, int]]:
        """The step of each preview and when it was drawn in ms, oldest first; of very many, evenly chosen ones."""
        try:
            files = list((self.folder / "previews").iterdir())
        except OSError:
            return []
        steps = sorted(
            (int(match[1]), round(_time_of(file) * 1000))
            for file in files
            if (match := PREVIEW.fullmatch(file.name))
        )
        stride = -(-len(steps) // MOST_PREVIEWS) or 1
        return steps[::-1][::stride][::-1]

    def preview_layout(self) -> dict[str, Any]:
        """The prompts of the images in a preview, and the columns of its grid; no prompts if the run has no list."""
        for tree in (self._settings_of_run(), self.source.config and _settings_in(self.source.config)):
            prompts = (tree or {}).get("preview")
            found = prompts.get("prompts") if isinstance(prompts, Mapping) else None
            if isinstance(found, list) and found and all(isinstance(each, str) for each in found):
                return {
                    "prompts": [each[:MAX_LETTERS] for each in found],
                    "columns": min(PREVIEW_COLUMNS, len(found)),
                }
        return {"prompts": [], "columns": 1}

    def preview(self, step: int) -> bytes:
        """The preview of a step, as PNG.

        Raises:
            NotFound: there is none, or it is not a PNG.
        """
        data = self._read(f"previews/step-{step:06d}.png")
        if not data.startswith(b"\x89PNG\r\n\x1a\n"):
            raise NotFound(f"the preview of step {step} is not a PNG", "choose another step")
        return data

    def has_page(self, name: str) -> bool:
        """Whether the run has one of `PAGES`."""
        return (self.folder / PAGES[name]).is_file()

    def page(self, name: str) -> bytes:
        """One of `PAGES`.

        Raises:
            NotFound: the run has none of that name.
        """
        if name not in PAGES:
            raise NotFound("there is no such page", f"there are {' and '.join(PAGES)}")
        return self._read(PAGES[name])

    def ledger_time(self) -> float:
        """When the ledger was written; 0 if there is none."""
        return _time_of(self.folder / LEDGER)

    def ledger(self) -> dict[str, Any]:
        """The samples with the highest loss, by the ledger in the run's folder.

        Raises:
            NotFound: it has none.
            UserError: it is damaged.
        """
        if not self.ledger_time():
            folder = self.folder / "ledger"
            raise NotFound(
                f"{self.source.name} has no ledger", f"make one: ldm ledger {self.folder} --output {folder}"
            )
        facts = read_object(self._inside(LEDGER))
        samples = facts.get("samples")
        rows = list(_ledger_rows(samples if isinstance(samples, list) else []))
        rows.sort(key=lambda row: -row["loss"])
        step = facts.get("step")
        return {
            "step": step if type(step) is int else None,
            "num_samples": len(rows),
            "samples": rows[:MOST_SAMPLES],
        }

    def _read(self, name: str) -> bytes:
        try:
            return read_bytes(self._inside(name), MAX_FILE_BYTES)
        except OSError:
            raise NotFound(
                f"{self.source.name} has no {name[:60]}", "it may have been removed: reload the page"
            ) from None

    def _inside(self, name: str) -> Path:
        """A file of the run. A link that leads out of its folder is not followed.

        Raises:
            NotFound: it leads out.
        """
        path = (self.folder / name).resolve()
        if not path.is_relative_to(self.folder.resolve()):
            raise NotFound(f"{name} leads out of the run's folder", "it is not shown")
        return path


class Busy(UserError):
    """The run is in use, or is not for this server to stop."""


def _settings_in(path: Path) -> Mapping[str, Any]:
    """The settings in a file; empty if it is missing or broken."""
    try:
        return read_yaml(path)
    except UserError:
        return {}


def _ledger_rows(samples: Sequence[Any]) -> Iterator[dict[str, Any]]:
    """The samples that have a finite loss; anything else in the file is passed over."""
    for each in samples:
        loss = finite(number(each.get("loss"))) if isinstance(each, Mapping) else None
        if loss is None:
            continue
        reasons = each.get("reasons")
        yield {
            "sample_id": str(each.get("sample_id", ""))[:MAX_LETTERS],
            "caption": str(each.get("caption", ""))[:MAX_LETTERS],
            "held_out": each.get("held_out") is True,
            "loss": loss,
            "stderr": finite(number(each.get("stderr"))),
            "reasons": [str(reason)[:MAX_LETTERS] for reason in reasons[:10]]
            if isinstance(reasons, list)
            else [],
        }


def _fault(action: Callable[[], None]) -> str:
    """What is wrong with a file, in one line; empty if nothing is."""
    try:
        action()
    except UserError as error:
        return " ".join(str(error).split("\n"))
    return ""


def _time_of(path: Path) -> float:
    """When a file was changed, in seconds; 0 if it is missing."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def finite(value: float | None) -> float | None:
    """A number that JSON has; None for all others."""
    return value if value is not None and math.isfinite(value) else None

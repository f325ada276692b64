"""The record of a training run: its settings, metrics, data report, and evaluations of its weights."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldm.config import read_yaml
from ldm.errors import UserError
from ldm.evaluation.curves import read_metrics
from ldm.export.card.evaluations import AUDIT, EVALUATION, is_of
from ldm.io.json_files import read_json, read_object

DATA_REPORT, REPORT = "data_report.json", "report.json"
REPORTS = (REPORT, EVALUATION, AUDIT)


@dataclass(frozen=True)
class RunRecord:
    """What a run's directory holds; what an older run did not write is empty.

    Attributes:
        name: the name of the directory.
        settings: the resolved configuration, including private parts.
        rows: the rows of metrics.jsonl.
        data_report: as `ldm.data.report.report` or `ldm.data.report.stream_report` writes it.
        step: the step of the model's weights: the best step, or a checkpoint's; None for the last step.
        weights: which weights of that step: "average", which validation measures, or others of a checkpoint.
        reports: evaluations of exactly these weights.
    """

    name: str
    settings: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]]
    data_report: Mapping[str, Any] | None
    step: int | None
    weights: str
    reports: Sequence[Mapping[str, Any]]

    def setting(self, path: str) -> Any:
        """A setting by its path, such as "optim.learning_rate"; None if it is missing."""
        found: Any = self.settings
        for key in path.split("."):
            found = found.get(key) if isinstance(found, Mapping) else None
        return found

    @property
    def validation(self) -> Mapping[str, Any] | None:
        """The row with the held-out loss of the model's weights; None if it was not measured."""
        at = [row for row in self.rows if "validation_loss" in row and self.step in (None, row["step"])]
        return at[-1] if at and self.weights == "average" else None


def read_run(
    folder: Path, model: Path, weights_hash: str, parts: Mapping[str, str] | None = None
) -> RunRecord:
    """Read a run's directory.

    Args:
        model: the folder of the run's model, or of a model made from one of its checkpoints.
        weights_hash: the model's; evaluations of other weights are ignored.
        parts: the model's `Identity.image_parts`, if known; evaluations of other parts are ignored.

    Raises:
        UserError: a file of the run is damaged.
    """
    data_report = folder / DATA_REPORT
    settings = read_yaml(folder / "config.yaml")
    made = _provenance(model)
    return RunRecord(
        name=folder.resolve().name,
        settings=settings,
        rows=read_metrics(folder),
        data_report=read_object(data_report) if data_report.is_file() else None,
        step=int(made["step"]) if "step" in made else _best_step(folder, settings),
        weights=str(made.get("weights", "average")),
        reports=[each for each in _reports_near(folder) if is_of(each, weights_hash, parts)],
    )


def _provenance(model: Path) -> Mapping[str, Any]:
    """What the model's `ldm.json` says about its origin; for a checkpoint, its step and weights."""
    path = model / "ldm.json"
    found = read_object(path).get("provenance") if path.is_file() else None
    return found if isinstance(found, Mapping) else {}


def _best_step(folder: Path, settings: Mapping[str, Any]) -> int | None:
    if not (settings.get("validation") or {}).get("keep_best"):
        return None
    return max(
        (int(read_object(each).get("step", 0)) for each in (folder / "best").rglob("best.json")), default=None
    )


def _reports_near(folder: Path) -> Iterator[Mapping[str, Any]]:
    """The reports in a run's folder, in its subfolders and in its sibling folders; other files are skipped."""
    folder = folder.resolve()
    places = [(place, name) for place in (folder, folder.parent) for name in REPORTS]
    beside = [path for place, name in places for path in place.glob(f"*/{name}")]
    for path in dict.fromkeys([*(folder / name for name in REPORTS), *sorted(beside)]):
        try:
            found = read_json(path)
        except UserError:
            continue
        if isinstance(found, Mapping):
            yield found

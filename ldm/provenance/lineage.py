"""The way back from an image to its training data: each step names the hash of the one before it.

    an image's record      weights_hash        of the model
    export.json, ldm.json  source_weights_hash of the model that was exported
    ldm.json of a run      checkpoint_hash     of the averaged weights in the run's newest checkpoint
                           data_hash           of the data set's fingerprint
    adapter.json           base_weights_hash   of the model that the adapter is for

A step is found only among the files at hand, and only if its hash is that which the later step names.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldm.data.fingerprint import decode_fingerprint
from ldm.errors import UserError
from ldm.io.json_files import read_object
from ldm.io.opening import MAX_TEXT_BYTES, read_bytes
from ldm.models.loading.folder import weights_hash
from ldm.models.loading.source import EMBEDDED

MAX_STEPS = 20
"""The longest way that is followed."""

AVERAGE, DATA, MANIFEST = "average.safetensors", "data.json", "manifest.json"


@dataclass(frozen=True)
class LineageStep:
    """One step of the way back.

    Attributes:
        kind: "model", "checkpoint", "data", or "file" for one that was imported.
        place: None if it is not at hand.
        note: what else is known, such as the number of samples.
    """

    kind: str
    hash: str
    place: Path | None
    note: str = ""

    def __str__(self) -> str:
        """Such as `model runs/photos/pipeline (0123456789)`."""
        where = str(self.place) if self.place else "not at hand"
        note = f", {self.note}" if self.note else ""
        return f"{self.kind} {where} ({self.hash[:10]}{note})"


def lineage(image_hash: str, folders: Sequence[Path]) -> list[LineageStep]:
    """The steps back from a model, as far as its files are in some folders.

    Args:
        image_hash: `weights_hash` of the image's record.
    """
    models = dict(_models(folders))
    steps: list[LineageStep] = []
    wanted: str | None = image_hash
    while wanted and len(steps) < MAX_STEPS and wanted not in [step.hash for step in steps]:
        place = models.get(wanted)
        steps.append(LineageStep("model", wanted, place))
        origin = _origin(place) if place else {}
        steps += _trained_from(place, origin) if place else []
        wanted = _text(origin.get("source_weights_hash")) or _text(origin.get("base_weights_hash"))
    return steps


def _models(folders: Sequence[Path]) -> Iterator[tuple[str, Path]]:
    """The hash and the place of each model in some folders, and of those that come with the program."""
    for folder in [*folders, *EMBEDDED.values()]:
        marks = [folder, *sorted(folder.rglob("*"))] if folder.is_dir() else []
        for path in marks:
            is_model = path.is_dir() and any(
                (path / name).is_file() for name in ("model_index.json", "adapter.json")
            )
            is_file = path.suffix == ".safetensors" and (path.parent / "export.json").is_file()
            if is_model or is_file:
                try:
                    yield weights_hash(path), path
                except (UserError, OSError):  # a model that is damaged made no image
                    continue


def _origin(place: Path) -> Mapping[str, Any]:
    """What a model's files say about where it comes from; an export's report says more than its `ldm.json`."""
    folder = place if place.is_dir() else place.parent
    found: dict[str, Any] = dict(_mapping(_read(folder / "ldm.json").get("provenance")))
    adapter = _read(folder / "adapter.json")
    if "base_weights_hash" in adapter:
        found["base_weights_hash"] = adapter["base_weights_hash"]
    source = _mapping(_read(folder / "export.json").get("source"))
    if "weights_hash" in source:
        found["source_weights_hash"] = source["weights_hash"]
    return found


def _trained_from(place: Path, origin: Mapping[str, Any]) -> Iterator[LineageStep]:
    """The imported file, or the checkpoint and the data that a run's model says it comes from."""
    if imported := _text(origin.get("sha256")):
        yield LineageStep("file", imported, None, _text(origin.get("imported_from")) or "")
    checkpoint = None
    if made := _text(origin.get("checkpoint_hash")):
        checkpoint = next((each for each in _checkpoints(place) if _average_hash(each) == made), None)
        yield LineageStep("checkpoint", made, checkpoint)
    if data := _text(origin.get("data_hash")):
        yield _data_step(data, checkpoint)


def _checkpoints(place: Path) -> list[Path]:
    """Those of the run that a model's folder stands in."""
    return sorted(place.parent.glob("checkpoints/step-*"), reverse=True)


def _average_hash(checkpoint: Path) -> str | None:
    return _text(_mapping(_read(checkpoint / MANIFEST).get(AVERAGE)).get("sha256"))


def _data_step(data: str, checkpoint: Path | None) -> LineageStep:
    """The fingerprint in a checkpoint, if it is the one wanted."""
    try:
        found = decode_fingerprint(read_bytes(checkpoint / DATA, MAX_TEXT_BYTES)) if checkpoint else None
    except OSError:
        found = None
    if checkpoint is None or found is None or found.hash != data:
        return LineageStep("data", data, None)
    return LineageStep("data", data, checkpoint / DATA, f"{len(found.samples)} samples")


def _read(path: Path) -> Mapping[str, Any]:
    """A JSON object; one that is missing or damaged is empty."""
    try:
        return read_object(path) if path.is_file() else {}
    except UserError:
        return {}


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None

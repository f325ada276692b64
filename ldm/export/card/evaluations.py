"""What `ldm evaluate` and `ldm audit memorisation` measured of a model, for its card.

Their files are found in and beside a run's folder, or named by `ldm export --evaluation`. Only those of exactly the
exported weights count.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from ldm.errors import UserError
from ldm.io.json_files import read_object
from ldm.io.redaction import public_text

EVALUATION, AUDIT = "evaluation.json", "audit.json"


@dataclass(frozen=True)
class Measurement:
    """One measured value, with the command that measures it again."""

    what: str
    value: str
    command: str


class Number(BaseModel):
    """A number of `evaluation.json`."""

    name: str
    value: float | None
    low: float | None
    high: float | None
    better: str = ""
    num_images: int
    num_reference: int | None = None
    protocol: dict[str, Any] = {}
    protocol_hash: str


class Copies(BaseModel):
    """The counts of `audit.json`, of `ldm audit memorisation`."""

    num_copies: int
    num_images: int
    share: float
    low: float
    high: float
    planted_found: float
    false_alarms: float
    plan: dict[str, Any]

    @property
    def protocol_hash(self) -> str:
        """A hash of how the copies were counted, without the model: equal for numbers that may be compared."""
        told = {key: value for key, value in self.plan.items() if key not in OF_THE_MODEL}
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]


OF_THE_MODEL = ("model", "model_parts", "weights_hash", "device")


def identity_in(report: Mapping[str, Any]) -> Mapping[str, Any]:
    """Where a report says which model was measured."""
    plan = report.get("plan")
    return plan if isinstance(plan, Mapping) else report


def is_of(report: Mapping[str, Any], weights_hash: str, parts: Mapping[str, str] | None) -> bool:
    """Whether an evaluation is of this model; those of older versions recorded only its weights."""
    told = identity_in(report)
    measured = told.get("model_parts")
    same_parts = measured is None or parts is None or measured == parts
    return told.get("weights_hash") == weights_hash and same_parts


def read_evaluations(
    paths: Sequence[Path], weights_hash: str, parts: Mapping[str, str] | None
) -> list[Mapping[str, Any]]:
    """The reports that are named, each by its file or by the output folder of the command.

    Raises:
        UserError: one is missing or damaged, is not such a report, or is of another model.
    """
    found: list[Mapping[str, Any]] = []
    for path in paths:
        files = (
            [path / name for name in (EVALUATION, AUDIT) if (path / name).is_file()]
            if path.is_dir()
            else [path]
        )
        if not files:
            raise UserError(f"{path} has no {EVALUATION} or {AUDIT}", "name an output folder of ldm evaluate")
        for file in files:
            report = read_object(file)
            if not (numbers_of(report) or copies_of(report)):
                raise UserError(
                    f"{file} is not a report of ldm evaluate or ldm audit memorisation", "leave it out"
                )
            if not is_of(report, weights_hash, parts):
                raise UserError(f"{file} is of another model", "measure this one, or leave it out")
            found += [report] if report not in found else []
    return found


def numbers_of(report: Mapping[str, Any]) -> list[Number]:
    """The numbers of an `evaluation.json`; none if it is something else."""
    numbers = report.get("measurements")
    try:
        return [Number.model_validate(each) for each in numbers] if isinstance(numbers, list) else []
    except ValidationError:
        return []


def copies_of(report: Mapping[str, Any]) -> Copies | None:
    """The counts of an `audit.json` of `ldm audit memorisation`; None if it is something else."""
    try:
        return Copies.model_validate(dict(report))
    except ValidationError:
        return None


def evaluation_rows(report: Mapping[str, Any]) -> Iterator[Measurement]:
    """The rows of a card: each number with its interval, how many images it is of, and the hash of how it was made."""
    for number in numbers_of(report):
        if number.value is not None:
            yield _number_row(number)
    if copies := copies_of(report):
        yield copies_row(copies, "MODEL", "DATA")


def _number_row(number: Number) -> Measurement:
    extractor = number.protocol.get("extractor")
    features = (
        f", features {public_text(str(extractor.get('name')))}" if isinstance(extractor, Mapping) else ""
    )
    better = f"; {number.better} is better" if number.better in ("lower", "higher") else ""
    interval = "" if None in (number.low, number.high) else f" [{number.low:.4g}, {number.high:.4g}]"
    against = "" if number.num_reference is None else f" against {number.num_reference:,} real ones"
    data = " --data DATA" if number.num_reference is not None else ""
    return Measurement(
        f"{public_text(number.name)}{features}{better}; measured as {public_text(number.protocol_hash)}",
        f"{number.value:.4g}{interval} on {number.num_images:,} images{against}",
        f"ldm evaluate MODEL{data} --num-images {number.num_images}",
    )


def copies_row(copies: Copies, model: str, data: str) -> Measurement:
    """How many generated images are copies of a training image, and how much the count can be trusted."""
    return Measurement(
        f"copies of training images; {copies.planted_found:.0%} of planted copies are found, and "
        f"{copies.false_alarms:.1%} of training images are taken for copies; measured as {copies.protocol_hash}",
        f"{copies.share:.3f} [{copies.low:.3f}, {copies.high:.3f}] of {copies.num_images:,} images",
        f"ldm audit memorisation {model} --data {data} --num-images {copies.num_images}",
    )

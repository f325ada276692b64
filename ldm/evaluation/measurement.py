"""A number of an evaluation with all that it depends on besides the model: only like is compared with like."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ldm.evaluation.intervals import Estimate

VERSION = 1
"""Increased when a metric would give another number for the same images."""


@dataclass(frozen=True)
class Measurement:
    """One metric of one model.

    Attributes:
        name: of the metric, such as "kid".
        estimate: the number and its 95 % interval.
        better: which numbers are better; "" if neither is.
        num_images: how many generated images it was computed from.
        num_reference: how many reference images; None if the metric has none.
        interval: how the interval was computed.
        protocol: what else the number depends on: the extractor and its weights' hash, the resize filter, the
            reference, the prompts, the rule of the seeds, the metric's own settings.
        details: further numbers, such as the slope of an extrapolation.
    """

    name: str
    estimate: Estimate
    better: Literal["lower", "higher", ""]
    num_images: int
    num_reference: int | None
    interval: str
    protocol: Mapping[str, Any]
    details: Mapping[str, float] = field(default_factory=dict)

    @property
    def protocol_hash(self) -> str:
        """Equal for numbers that may be compared: a hash of the metric, the numbers of images and the protocol."""
        facts = [VERSION, self.name, self.num_images, self.num_reference, dict(self.protocol)]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]

    def to_dict(self) -> dict[str, Any]:
        """For JSON; a limit that does not exist is null."""
        return {
            "name": self.name,
            "value": _known(self.estimate.value),
            "low": _known(self.estimate.low),
            "high": _known(self.estimate.high),
            "better": self.better,
            "num_images": self.num_images,
            "num_reference": self.num_reference,
            "interval": self.interval,
            "protocol": dict(self.protocol),
            "protocol_hash": self.protocol_hash,
            "details": dict(self.details),
        }


def _known(number: float) -> float | None:
    return number if math.isfinite(number) else None


@dataclass(frozen=True)
class Column:
    """The numbers of several models for one metric; None for a model that was not measured in the same way.

    Attributes:
        metric: the first model's measurement as a dictionary.
    """

    metric: Mapping[str, Any]
    cells: tuple[Mapping[str, Any] | None, ...]


def columns(reports: Sequence[Sequence[Mapping[str, Any]]]) -> list[Column]:
    """A column for each metric and way of measuring it: numbers with different hashes are never in one column.

    Args:
        reports: the measurements of each model, as `Measurement.to_dict` gives them.
    """
    found = {(each["name"], each["protocol_hash"]): each for report in reports for each in report}
    tables = [{(each["name"], each["protocol_hash"]): each for each in report} for report in reports]
    return [
        Column(metric, tuple(table.get(key) for table in tables))
        for key, metric in sorted(found.items(), key=lambda item: item[0])
    ]

"""The curves of a run while it trains: only new lines of `metrics.jsonl` are read, and only new points are sent."""

import math
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ldm.errors import UserError
from ldm.evaluation.curves import METRICS, parse_rows
from ldm.io.opening import MAX_TEXT_BYTES, open_file

MOST_POINTS = 800
"""Of one curve. A longer one is thinned: a point is then the mean of several rows."""
PACE_ROWS = 20
"""The speed is measured over this many rows."""

Point = tuple[int, float | None]
"""A step and its value; None if it is not finite."""


class Thinned(NamedTuple):
    """A curve with a bounded number of points.

    Attributes:
        stride: rows per point, a power of two.
        points: each at the last of its steps.
        final_step: the step up to which further rows change nothing.
    """

    stride: int
    points: list[Point]
    final_step: float


class LossCurves:
    """The losses in a run's `metrics.jsonl`, as far as it has been read.

    Attributes:
        last_step: the last step that was logged; 0 if none was.
        elapsed_sec: the time of the whole run at that step, if it was logged.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / METRICS
        self._generation = 0
        self._forget()

    def _forget(self) -> None:
        self._generation += 1
        self._end, self._lines, self._last_line = 0, 0, b""
        self.training: dict[int, float] = {}
        self.held_out: dict[int, float] = {}
        self.last_step = 0
        self.elapsed_sec: float | None = None
        self._pace: deque[tuple[int, float]] = deque(maxlen=PACE_ROWS)

    def look(self) -> None:
        """Read what was appended. If the file was replaced, as by a resumed run, it is read again from its start.

        Raises:
            UserError: a line is not a logged step, or the file cannot be read.
        """
        try:
            appended = self._appended()
        except FileNotFoundError:
            if self._end:
                self._forget()
            return
        except OSError as error:
            raise UserError(f"{self.path} cannot be read ({error.strerror})", "restore the file") from None
        whole = appended[: appended.rfind(b"\n") + 1]
        if not whole:
            return
        lines = whole.decode("utf-8", "replace").splitlines(keepends=True)
        for row in parse_rows(lines, self.path, self._lines + 1):
            self._add(row)
        self._end, self._lines = self._end + len(whole), self._lines + len(lines)
        self._last_line = whole[whole[:-1].rfind(b"\n") + 1 :]

    def _appended(self) -> bytes:
        """The bytes after those read before, or all if these are no longer there."""
        with open_file(self.path, MAX_TEXT_BYTES) as file:
            if self._end:
                file.seek(self._end - len(self._last_line))
                if file.read(len(self._last_line)) == self._last_line:
                    return file.read()
                self._forget()
                file.seek(0)
            return file.read()

    def _add(self, row: Mapping[str, Any]) -> None:
        step = row["step"]
        for name, curve in (("loss", self.training), ("validation_loss", self.held_out)):
            value = number(row.get(name))
            if value is None:
                continue
            if curve and step <= next(reversed(curve)):  # a step that was logged before
                self._generation += 1
                known = {**curve, step: value}
                curve.clear()
                curve.update(sorted(known.items()))
            else:
                curve[step] = value
        self.last_step = max(self.last_step, step)
        elapsed_sec = number(row.get("elapsed_sec"))
        self.elapsed_sec = self.elapsed_sec if elapsed_sec is None else elapsed_sec
        call_sec = number(row.get("call_sec"))
        if call_sec is not None:
            if self._pace and call_sec < self._pace[-1][1]:  # the run was resumed
                self._pace.clear()
            self._pace.append((step, call_sec))

    @property
    def steps_per_sec(self) -> float | None:
        """The speed over the last rows of this call; None if too few are known."""
        if not self._pace:
            return None
        (first, start), (last, end) = self._pace[0], self._pace[-1]
        return (last - first) / (end - start) if last > first and end > start else None

    @property
    def best(self) -> Point | None:
        """The step with the lowest held-out loss, the first of equals; None if none is finite."""
        finite = {step: value for step, value in self.held_out.items() if math.isfinite(value)}
        step = min(finite, key=finite.__getitem__, default=None)
        return None if step is None else (step, finite[step])

    def points_after(self, step: float, key: str) -> dict[str, Any]:
        """The points that a client lacks, ready for JSON.

        Args:
            step: `next` of the client's last answer: it keeps its points up to here, and replaces those behind.
            key: `key` of that answer. If it is not the present one, all points are sent, and `after` is -1.
        """
        training, held_out = thinned(self.training), thinned(self.held_out)
        present = f"{self._generation}-{training.stride}-{held_out.stride}"
        after = step if key == present else -1
        return {
            "key": present,
            "after": after,
            "next": min(self.last_step - 1, training.final_step, held_out.final_step),
            "loss": [point for point in training.points if point[0] > after],
            "held_out": [point for point in held_out.points if point[0] > after],
            "best": self.best,
        }


def thinned(curve: Mapping[int, float], most: int = MOST_POINTS) -> Thinned:
    """A curve with at most `most` points: each is the mean of as many neighbouring rows as it takes, a power of two.

    The groups are counted from the first row, so a group that is full does not change any more.
    """
    stride = 1 if len(curve) <= most else 2 ** math.ceil(math.log2(len(curve) / most))
    steps = list(curve)
    padding = -len(steps) % stride
    values = np.array([*curve.values(), *[math.nan] * padding], dtype=np.float64).reshape(-1, stride)
    good = np.isfinite(values)
    counts = good.sum(axis=1)
    sums = np.where(good, values, 0.0).sum(axis=1)
    ends = [*steps[stride - 1 :: stride], *(steps[-1:] if padding else [])]
    points: list[Point] = [
        (step, float(total / count) if count else None)
        for step, total, count in zip(ends, sums, counts, strict=True)
    ]
    if stride == 1:
        return Thinned(1, points, math.inf)
    num_full = len(steps) // stride
    return Thinned(stride, points, ends[num_full - 1])


def number(value: Any) -> float | None:
    """A number of a row; None if it is something else."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None

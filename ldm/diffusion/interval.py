"""The part of the sampling in which guidance is used. Nothing heavy is imported here."""

from collections.abc import Sequence

from ldm.errors import UserError

Interval = tuple[float, float]
"""A part of the sampling: its start and its end, in the order in which sampling reaches them.

Rising numbers are fractions of the steps: (0, 0.5) is the first half of them. Falling numbers are noise levels, sigma
over alpha as in `ldm.types.Step`: (5, 0.3) starts where there is five times as much noise as signal.
"""

EVERYWHERE: Interval = (0.0, 1.0)


def check_interval(interval: Sequence[float]) -> None:
    """Refuse two numbers that are not an interval.

    Raises:
        UserError: saying how fractions of the steps are written, and how noise levels.
    """
    start, end = interval
    finite = all(0 <= value < float("inf") for value in interval)  # false for NaN
    if not finite or start == end or start < end > 1:
        raise UserError(
            f"guidance_interval is {start:g} {end:g}",
            "write fractions of the steps, rising and up to 1 (0 0.5), or noise levels, falling (5 0.3)",
        )

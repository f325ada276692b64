"""The part of the sampling in which guidance is used. This module has no heavy imports."""

from collections.abc import Sequence

from ldm.errors import UserError

Interval = tuple[float, float]
"""The start and the end of a part of the sampling, in sampling order.

Increasing numbers are fractions of the steps: (0, 0.5) is the first half. Decreasing numbers are noise levels,
sigma/alpha as in `ldm.types.Step`: (5, 0.3) starts where there is five times as much noise as signal.
"""

EVERYWHERE: Interval = (0.0, 1.0)


def check_interval(interval: Sequence[float]) -> None:
    """Check that two numbers form an interval.

    Raises:
        UserError: they do not; the message explains both notations.
    """
    start, end = interval
    finite = all(0 <= value < float("inf") for value in interval)  # false for NaN
    if not finite or start == end or start < end > 1:
        raise UserError(
            f"guidance_interval is {start:g} {end:g}",
            "give increasing fractions of the steps, up to 1 (0 0.5), or decreasing noise levels (5 0.3)",
        )

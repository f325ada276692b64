"""The checks of settings that a type and bounds cannot express."""

from typing import Annotated, Any

from pydantic import AfterValidator, Strict

from ldm.diffusion.interval import Interval, check_interval
from ldm.diffusion.scheduler_names import OWN_SCHEDULER, SCHEDULERS
from ldm.errors import UserError, unknown_name
from ldm.models.setting_limits import MAX_GRADIENT, MAX_TOLD_PX, UNTOLD

Number = Annotated[float, Strict()]
Whole = Annotated[int, Strict()]


def check_scheduler(name: str) -> str:
    """Refuse an unknown scheduler, naming the nearest one."""
    if name != OWN_SCHEDULER and name not in SCHEDULERS:
        raise unknown_name("scheduler", name, [OWN_SCHEDULER, *SCHEDULERS])
    return name


def check_text(text: str) -> str:
    """Refuse text that cannot be encoded, or that would end a C string."""
    try:
        text.encode()
    except UnicodeEncodeError:  # bytes of an argument, or half of a surrogate pair in JSON
        raise UserError("the prompt is not valid Unicode", "write it as UTF-8") from None
    if "\0" in text:
        raise UserError("the prompt contains the character U+0000", "remove it")
    return text


def checked_interval(interval: Interval) -> Interval:
    check_interval(interval)
    return interval


def checked_control_interval(interval: Interval) -> Interval:
    start, end = interval
    if not 0 <= start < end <= 1:  # false for NaN
        raise UserError(
            f"control_interval is {start:g} {end:g}", "give increasing fractions of the steps: 0 0.5"
        )
    return interval


def checked_canny_thresholds(thresholds: tuple[float, float]) -> tuple[float, float]:
    low, high = thresholds
    if not 0 <= low <= high <= MAX_GRADIENT:  # false for NaN
        what = f"canny_thresholds is {low:g} {high:g}"
        raise UserError(what, f"give two increasing numbers from 0 to {MAX_GRADIENT}")
    return thresholds


def _checked_pair(name: str, pair: tuple[int, int], *, left_open: tuple[int, int], lowest: int) -> Any:
    if pair != left_open and not all(lowest <= side <= MAX_TOLD_PX for side in pair):
        raise UserError(
            f"{name} is {pair[0]} {pair[1]}", f"give two whole numbers from {lowest} to {MAX_TOLD_PX}"
        )
    return pair


def size_pair(name: str) -> AfterValidator:
    return AfterValidator(lambda pair: _checked_pair(name, pair, left_open=UNTOLD, lowest=1))


def crop_pair(name: str, left_open: tuple[int, int]) -> AfterValidator:
    return AfterValidator(lambda pair: _checked_pair(name, pair, left_open=left_open, lowest=0))

"""A signal at a chosen place of our code: as it first calls a certain function, or at its n-th call of anything.

The signal is sent inside the process, and only while a command or `stopping` handles it.
"""

import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

OURS = str(Path(__file__).parents[2] / "ldm") + "/"
MECHANISM = ("io/stopping.py", "cli/app.py")
"""What handles the signals: a signal before it is ready, or when it is done, is another test's matter."""

Place = tuple[str, str]
"""A file below `ldm/`, and a function in it."""

Result = TypeVar("Result")


def places_of(work: Callable[[], Result]) -> tuple[list[Place], Result]:
    """The functions of ours that some work calls, in the order of their first calls; and what it returns."""
    found: dict[Place, None] = {}

    def note(place: Place) -> bool:
        if not place[1].startswith("<"):
            found[place] = None
        return False

    result = _traced(work, note, 0)
    return list(found), result


def signalled_at(place: Place, number: int, work: Callable[[], Result]) -> Result:
    """What some work returns if a signal arrives as it first calls a function."""
    reached = False

    def arrived(here: Place) -> bool:
        nonlocal reached
        reached = here == place
        return reached

    result = _traced(work, arrived, number)
    assert reached, f"{place} was not called"
    return result


def signalled_at_call(ordinal: int, number: int, work: Callable[[], Any]) -> bool:
    """Whether some work makes so many calls. A signal arrives at the last: as our function begins or another ends."""
    left = ordinal
    ready = _readiness()

    def profile(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal left
        if event in ("call", "c_return") and _is_ours(frame) and ready():
            left -= 1
            if left == 0:
                sys.setprofile(None)
                signal.raise_signal(number)

    sys.setprofile(profile)
    try:
        work()
    finally:
        sys.setprofile(None)
    return left <= 0


def _traced(work: Callable[[], Result], arrived: Callable[[Place], bool], number: int) -> Result:
    """Send a signal at the first call that `arrived` accepts."""
    ready = _readiness()

    def trace(frame: FrameType, event: str, argument: Any) -> None:
        if _is_ours(frame) and ready():
            code = frame.f_code
            if arrived((code.co_filename.removeprefix(OURS), code.co_name)):
                sys.settrace(None)
                signal.raise_signal(number)

    sys.settrace(trace)
    try:
        return work()
    finally:
        sys.settrace(None)


def _is_ours(frame: FrameType) -> bool:
    file = frame.f_code.co_filename
    return file.startswith(OURS) and not file.endswith(MECHANISM)


def _readiness() -> Callable[[], bool]:
    """Whether something else handles signals than at the time of this call."""
    outside = signal.getsignal(signal.SIGTERM)
    return lambda: signal.getsignal(signal.SIGTERM) is not outside

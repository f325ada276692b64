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


def places_of(work: Callable[[], Any]) -> list[Place]:
    """The functions of ours that some work calls, in the order of their first calls."""
    found: dict[Place, None] = {}

    def note(place: Place, event: str) -> bool:
        if event == "call" and not place[1].startswith("<"):
            found[place] = None
        return False

    _profiled(work, note, 0)
    return list(found)


def signalled_at(place: Place, number: int, work: Callable[[], Result]) -> Result:
    """What some work returns if a signal arrives as it first calls a function."""
    reached = False

    def arrived(here: Place, event: str) -> bool:
        nonlocal reached
        reached = event == "call" and here == place
        return reached

    result = _profiled(work, arrived, number)
    assert reached, f"{place} was not called"
    return result


def signalled_at_call(ordinal: int, number: int, work: Callable[[], Any]) -> bool:
    """Whether some work makes so many calls. A signal arrives at the last: as our function begins or another ends."""
    left = ordinal

    def arrived(here: Place, event: str) -> bool:
        nonlocal left
        left -= 1
        return left == 0

    _profiled(work, arrived, number)
    return left <= 0


def _profiled(work: Callable[[], Result], arrived: Callable[[Place, str], bool], number: int) -> Result:
    outside = signal.getsignal(signal.SIGTERM)

    def profile(frame: FrameType, event: str, argument: Any) -> None:
        file = frame.f_code.co_filename
        if event not in ("call", "c_return") or not file.startswith(OURS) or file.endswith(MECHANISM):
            return
        if signal.getsignal(signal.SIGTERM) is outside:
            return
        if arrived((file.removeprefix(OURS), frame.f_code.co_name), event):
            sys.setprofile(None)
            signal.raise_signal(number)

    sys.setprofile(profile)
    try:
        return work()
    finally:
        sys.setprofile(None)

"""The timesteps of a sampling run as written in `timesteps: 999,850,...`. No heavy imports."""

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from ldm.errors import UserError


def parse_timesteps(text: str) -> tuple[int, ...]:
    """The timesteps in a text, from most to least noise; none in an empty one.

    Raises:
        UserError: they are not falling whole numbers.
    """
    parts = [part.strip() for part in text.split(",")] if text.strip() else []
    if not all(re.fullmatch(r"[0-9]{1,6}", part) for part in parts):
        raise UserError(f"timesteps is {text!r}", "write whole numbers as in 999,850,600")
    found = tuple(int(part) for part in parts)
    if any(first <= second for first, second in pairwise(found)):
        raise UserError(f"timesteps is {text!r}", "write falling numbers, from most to least noise")
    return found


def timesteps_text(given: Any) -> Any:
    """Timesteps given from Python as a list, such as `[999, 850]`, as text."""
    if isinstance(given, Sequence) and not isinstance(given, str):
        return ",".join(str(each) for each in given)
    return given


def checked_timesteps(text: str) -> str:
    """The text in its normal form, so that equal timesteps are equal settings."""
    return ",".join(map(str, parse_timesteps(text)))

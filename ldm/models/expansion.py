"""How far an image is enlarged on each side, as written in `expand: top=64,left=32`. No heavy imports."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from ldm.errors import UserError, unknown_name

Fill = Literal["mirror", "edge", "noise"]
"""What the new area holds before it is made: the image mirrored, its edge repeated, or random pixels."""


@dataclass(frozen=True)
class Expansion:
    """Pixels added on each side."""

    top: int = 0
    bottom: int = 0
    left: int = 0
    right: int = 0

    def __str__(self) -> str:
        given = {side.name: getattr(self, side.name) for side in fields(self)}
        return ",".join(f"{side}={pixels}" for side, pixels in given.items() if pixels)

    def size(self, width: int, height: int) -> tuple[int, int]:
        """Width and height of an enlarged image."""
        return width + self.left + self.right, height + self.top + self.bottom


SIDES = tuple(side.name for side in fields(Expansion))


def parse_expansion(text: str) -> Expansion:
    """The sides in a text such as `top=64,left=32`; none in an empty one.

    Raises:
        UserError: a side is unknown or given twice, or its pixels are not a whole number.
    """
    found: dict[str, int] = {}
    for each in text.split(",") if text.strip() else []:
        side, _, pixels = (part.strip() for part in each.partition("="))
        if side not in SIDES:
            raise unknown_name("side to expand", side, SIDES)
        if side in found:
            raise UserError(f"expand names {side} twice: {text!r}", "name each side once")
        if not re.fullmatch(r"[0-9]{1,5}", pixels):
            raise UserError(f"expand has {each.strip()!r}", "write pixels as in top=64,left=32")
        found[side] = int(pixels)
    return Expansion(**found)


def expansion_text(given: Any) -> Any:
    """An expansion given from Python as a mapping, such as `{"top": 64}`, as text."""
    if isinstance(given, Mapping):
        return ",".join(f"{side}={pixels}" for side, pixels in given.items())
    return given


def checked_expansion(text: str) -> str:
    """The text in its normal form, so that equal expansions are equal settings."""
    return str(parse_expansion(text))

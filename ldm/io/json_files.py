"""The one reader of JSON that users give: its size, depth and numbers are bounded, and its shape is checked.

Python's parser accepts values that later code cannot handle: lists nested a thousand times, integers of a thousand
digits, and any type where an object is expected.
"""

import json
import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from ldm.errors import UserError
from ldm.io.opening import read_bytes

MAX_MODEL_JSON_BYTES = 64 * 2**20
"""Maximum size of a JSON file in a model; the largest vocabularies take a third of it."""

MAX_CONFIG_BYTES = 4 * 2**20
"""Maximum size of a configuration; one that names every layer takes some 100 kB."""

MAX_BRACKETS = 4_000_000
"""Objects and lists in one file: each takes about 60 bytes of memory. The largest vocabularies have 500,000."""

MAX_DEPTH = 100
MAX_NUMBER = 1e38
"""The largest integer that is read. Tokenizers write 1e30 for "no limit"."""

MAX_SHOWN = 80
HINT = "restore the file"

_LARGE_NUMBER = re.compile(r"\d{38}|[eE]\+?\d\d")


class TwiceError(ValueError):
    """An object has a key twice."""


def parse_json(text: str | bytes, *, once: bool = False) -> Any:
    """The value in a JSON text.

    Args:
        once: refuse an object with a key twice, of which one value would be lost.

    Raises:
        TwiceError: see `once`.
        ValueError: in one line: it is not JSON or not UTF-8, or is nested too deeply, has too many parts or too large
            a number.
    """
    if isinstance(text, bytes):
        text = text.decode("utf-8")
    num_brackets = text.count("[") + text.count(
        "{"
    )  # those in quotes count too, which only makes it stricter
    if num_brackets > MAX_BRACKETS:
        raise ValueError(f"it has more than {MAX_BRACKETS:,} brackets")
    # parsing is much faster without a check of each number
    try:
        value = _decoder(once, bool(_LARGE_NUMBER.search(text))).decode(text)
    except RecursionError:
        raise ValueError(f"it is nested more than {MAX_DEPTH} deep") from None
    if num_brackets > MAX_DEPTH:
        check_depth(value)
    return value


@cache
def _decoder(once: bool, bounded: bool) -> json.JSONDecoder:
    """A decoder, which takes longer to make than to use: see `parse_json`; `bounded` checks each number."""
    numbers: dict[str, Any] = {"parse_int": _integer, "parse_float": _fraction} if bounded else {}
    return json.JSONDecoder(object_pairs_hook=each_once if once else None, **numbers)


def _integer(digits: str) -> int:
    if len(digits) > 40 or abs(int(digits)) > MAX_NUMBER:
        raise ValueError(f"the number {digits[:10]}... has {len(digits)} digits")
    return int(digits)


def _fraction(digits: str) -> float:
    value = float(digits)
    if value in (float("inf"), float("-inf")):  # written as such, infinity is a word
        raise ValueError(f"the number {digits[:20]} is too large")
    return value


def each_once(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """An object without duplicate names, of which two readers could take different values: `object_pairs_hook`.

    Raises:
        TwiceError: a name occurs twice.
    """
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise TwiceError(f"{name[:MAX_SHOWN]!r} occurs twice")
        found[name] = value
    return found


def check_depth(value: Any, max_depth: int = MAX_DEPTH) -> None:
    """Refuse lists and mappings that are nested too deeply for functions that call themselves.

    Raises:
        ValueError: in one line.
    """
    level = [value]
    for _ in range(max_depth):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return
    raise ValueError(f"it is nested more than {max_depth} deep")


def read_json(path: Path, kind: Any = Any, *, max_bytes: int = MAX_MODEL_JSON_BYTES) -> Any:
    """The value in a JSON file.

    Args:
        kind: the type that it must have, such as `dict[str, int]` or a pydantic model; the value is converted to it.

    Raises:
        UserError: the file is missing, unreadable, not JSON or larger than `max_bytes`, or the value is of another
            type.
    """
    try:
        value = parse_json(read_bytes(path, max_bytes))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist", "the folder is incomplete") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})", HINT) from None
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error})", HINT) from None
    return value if kind is Any else checked(value, kind, str(path))


def read_object(path: Path, *, max_bytes: int = MAX_MODEL_JSON_BYTES) -> dict[str, Any]:
    """The object in a JSON file; errors as of `read_json`."""
    value = read_json(path, max_bytes=max_bytes)
    if not isinstance(value, dict):
        raise UserError(f"{path} does not hold a JSON object", HINT)
    return value


def checked(value: Any, kind: Any, where: str, hint: str = HINT) -> Any:
    """A parsed value as the type that it must have.

    Args:
        kind: as of `read_json`.
        where: what names the value in an error, such as a file.

    Raises:
        UserError: it is of another type; the message names the first key that is wrong.
    """
    try:
        return _adapter(kind).validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
    key = ".".join(map(str, first["loc"]))
    if first["type"] == "missing":
        raise UserError(f"{where}: {key!r} is missing", hint)
    named = f"{key} is {shortened(first['input'])}" if key else f"it holds {shortened(first['input'])}"
    raise UserError(f"{where}: {named} ({first['msg'].removeprefix('Value error, ')})", hint)


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def shortened(value: Any) -> str:
    """A value as shown in messages."""
    shown = repr(value)
    return shown if len(shown) <= MAX_SHOWN else shown[:MAX_SHOWN] + "..."

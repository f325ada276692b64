"""Text of unknown origin, such as names and captions, on a terminal: nothing in it is obeyed."""

import unicodedata

MAX_LETTERS = 200
"""Of a name or caption, before it is cut."""

_TURNING = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Characters that show a line's text in another order."""


def shown(text: str, max_letters: int = MAX_LETTERS) -> str:
    """The text on one line, control characters escaped, cut where it is long."""
    line = visible(text[: max_letters + 1])
    return line if len(line) <= max_letters else line[:max_letters] + "..."


def visible(text: str) -> str:
    """The text with line breaks and control characters escaped."""
    return "".join(map(_visible, text))


def _visible(letter: str) -> str:
    if letter in _TURNING or unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp"):
        return letter.encode("unicode_escape").decode()
    return letter

"""Text from elsewhere (prompts, names, licences) as Markdown that says just that, and tables of it."""

import re
from collections.abc import Iterable, Sequence

_MEANS_SOMETHING = re.compile(r"[\\`*_{}\[\]<>#|~&!$]")
_BAR = re.compile(r"(?<!\\)\|")


def escaped(text: str) -> str:
    """One line of Markdown that shows `text` as it is: no mark-up, no HTML, no line break."""
    return _MEANS_SOMETHING.sub(r"\\\g<0>", " ".join(text.split()))


def code(text: str) -> str:
    """`text` as code within a line."""
    text = " ".join(text.split())
    ticks = "`" * (_longest_run(text, "`") + 1)
    return (
        f"{ticks} {text} {ticks}" if text.startswith("`") or text.endswith("`") else f"{ticks}{text}{ticks}"
    )


def fenced(text: str, language: str = "") -> str:
    """`text` as a block of code, whatever it holds."""
    fence = "`" * max(3, _longest_run(text, "`") + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; its cells are Markdown of one line each."""
    lines = [_row(header), "|" + "---|" * len(header), *map(_row, rows)]
    return "\n".join(lines)


def _row(cells: Sequence[str]) -> str:
    """A bar within a cell would end it, in code too."""
    return "| " + " | ".join(_BAR.sub(r"\\|", cell) for cell in cells) + " |"


def _longest_run(text: str, character: str) -> int:
    return max((len(run) for run in re.findall(f"{re.escape(character)}+", text)), default=0)

"""Rendering a model card: a Jinja2 template whose values are escaped as Markdown by default.

Text from elsewhere (prompts, names, licences, settings) can contain anything. `{{ value }}` in a template shows such
text literally. Only what a filter below returns, a macro, or `{{ value | safe }}` is Markdown.
"""

import re
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

_SPECIAL = re.compile(r"[\\`*_{}\[\]<>#|~&!$]")
_LINE_START = re.compile(r"^(?:[-+=](?=[-=\s]|$)|\d+(?=[.)](?:\s|$)))")
_BAR = re.compile(r"(?<!\\)\|")


def render(template: Path, **facts: Any) -> str:
    """A template's text with the facts filled in.

    Raises:
        jinja2.UndefinedError: the template needs a fact that is missing.
    """
    return _environment(template.parent).get_template(template.name).render(**facts)


@cache
def _environment(folder: Path) -> Environment:
    """Of the templates in a folder; it keeps those that it has compiled."""
    environment = Environment(
        loader=FileSystemLoader(folder),
        undefined=StrictUndefined,
        autoescape=True,  # makes macros return Markup; the escaping itself is `_finalize`
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "code": code,
        "fenced": fenced,
        "cell": cell,
        "millions": millions,
        "count": count,
    }
    return environment


def _finalize(value: Any) -> Markup:
    return value if isinstance(value, Markup) else Markup(escaped(str(value)))


def escaped(text: str) -> str:
    """One line of Markdown that shows `text` literally: no markup, no HTML, no line break."""
    line = _SPECIAL.sub(r"\\\g<0>", " ".join(text.split()))
    return _LINE_START.sub(lambda start: _escaped_start(start[0]), line)


def _escaped_start(start: str) -> str:
    """A line must not begin a list or underline a heading: "-" becomes "\\-", and "1." becomes "1\\."."""
    return f"{start}\\" if start.isdigit() else f"\\{start}"


def code(text: str) -> Markup:
    """`text` as inline code."""
    text = " ".join(text.split())
    ticks = "`" * (_longest_run(text, "`") + 1)
    padding = " " if text.startswith("`") or text.endswith("`") else ""
    return Markup(f"{ticks}{padding}{text}{padding}{ticks}")


def fenced(text: str, language: str = "") -> Markup:
    """`text` as a code block, whatever it contains."""
    fence = "`" * max(3, _longest_run(text, "`") + 1)
    return Markup(f"{fence}{language}\n{text.rstrip()}\n{fence}")


def cell(markdown: Markup) -> Markup:
    """Markdown for a table's cell, which an unescaped bar would end, even in code."""
    return Markup(_BAR.sub(r"\\|", str(markdown)))


def count(number: int) -> str:
    """A count with separators: 1,990."""
    return f"{number:,}"


def millions(number: int) -> str:
    """A number of weights: 0.206 M, or 43,711 if it is small."""
    return f"{number / 1e6:.3g} M" if number >= 1e5 else f"{number:,}"


def _longest_run(text: str, character: str) -> int:
    return max((len(run) for run in re.findall(f"{re.escape(character)}+", text)), default=0)

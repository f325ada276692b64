"""The card that a model came with. A copy of the model in another format repeats it."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldm.config import YamlFault, parse_yaml
from ldm.export.model_files import CARD
from ldm.io.opening import read_text
from ldm.io.redaction import public_text

MAX_BYTES = 200_000
"""Longer cards are left out."""

_PARTS = re.compile(r"\A---[ \t]*\r?\n(.*?\n)---[ \t]*(?:\r?\n|\Z)(.*)\Z", re.DOTALL)
_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")
_IMAGE = re.compile(r"!\[([^\]\n]*)\]\((?!https?://)[^)\n]*\)")


@dataclass(frozen=True)
class SourceCard:
    """A README.md: its front matter, empty if it is not a mapping, and its text."""

    front_matter: Mapping[str, Any]
    text: str

    @property
    def licence(self) -> str | None:
        """The licence that it names, if any."""
        found = self.front_matter.get("license")
        if found == "other":
            found = self.front_matter.get("license_link") or self.front_matter.get("license_name")
        return found if isinstance(found, str) and found != "unknown" else None

    def quoted(self) -> str:
        """The text as a section of another card: headings two levels lower, local images left out."""
        text = _IMAGE.sub(r"\1", public_text(self.text))
        return "\n".join(_lowered(text.splitlines())).strip()


def read_source_card(folder: Path) -> SourceCard | None:
    """The card in a model's folder; None if there is none, or it cannot be read."""
    path = folder / CARD
    try:
        text = read_text(path, MAX_BYTES).removeprefix("\ufeff")
    except (OSError, UnicodeDecodeError):
        return None
    found = _PARTS.match(text)
    if found is None:
        return SourceCard({}, text)
    try:
        front_matter = parse_yaml(found[1])
    except YamlFault:
        front_matter = None
    return SourceCard(front_matter if isinstance(front_matter, Mapping) else {}, found[2])


def _lowered(lines: list[str]) -> Iterator[str]:
    """Headings two levels lower, except in code, where `#` starts a comment; an open code block is closed."""
    fence = ""
    for line in lines:
        mark = _FENCE.match(line)
        if fence:
            if mark and mark[1].startswith(fence) and not line.strip().strip(fence[0]):
                fence = ""
        elif mark:
            fence = mark[1]
        elif heading := re.match(r"(#{1,4})(?= )", line):
            line = f"##{heading[1]}{line[heading.end() :]}"
        yield line
    if fence:
        yield fence

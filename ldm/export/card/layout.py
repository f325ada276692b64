"""A model card: front matter for the Hub, then what the model is, what it was made of, and what was measured."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ldm.export.card.markdown import code, table


@dataclass(frozen=True)
class Measurement:
    """One number with the command that gives it; the first two are Markdown."""

    what: str
    value: str
    command: str


@dataclass(frozen=True)
class Card:
    """The facts of a model card.

    Attributes:
        title: Markdown, as all that follows.
        front_matter: keys of the Hub's metadata; plain values, as YAML has them.
        sections: headings and their text, in order; one without text is left out.
    """

    title: str
    summary: str
    front_matter: Mapping[str, Any]
    sections: Mapping[str, str]

    def to_markdown(self) -> str:
        """The whole README.md."""
        parts = [self._front_matter(), f"# {self.title}", self.summary]
        parts += [f"## {heading}\n\n{text}" for heading, text in self.sections.items() if text]
        return "\n\n".join(parts) + "\n"

    def _front_matter(self) -> str:
        import yaml

        return f"---\n{yaml.safe_dump(dict(self.front_matter), sort_keys=False, allow_unicode=True)}---"


def measurement_table(measurements: Sequence[Measurement]) -> str:
    """What was measured, and how to measure it again; empty where nothing was."""
    rows = [(m.what, m.value, code(m.command)) for m in measurements]
    return table(("what", "result", "command"), rows) if rows else ""

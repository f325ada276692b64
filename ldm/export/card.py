"""A model card: front matter for the Hub, then what the model is, what it was made of, and what was measured."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Measurement:
    """One number with the command that gives it."""

    what: str
    value: str
    command: str


@dataclass(frozen=True)
class Card:
    """The facts of a model card.

    Attributes:
        front_matter: keys of the Hub's metadata; values are text or lists of text.
        sections: headings and their Markdown text, in order, put before the measurements.
    """

    title: str
    summary: str
    front_matter: Mapping[str, str | Sequence[str]]
    sections: Mapping[str, str]
    measurements: Sequence[Measurement] = field(default_factory=tuple)
    limits: str = ""

    def to_markdown(self) -> str:
        """The whole README.md."""
        parts = [self._front_matter(), f"# {self.title}", self.summary]
        parts += [f"## {heading}\n\n{text}" for heading, text in self.sections.items()]
        if self.measurements:
            parts.append(self._measurements())
        if self.limits:
            parts.append(f"## Limits\n\n{self.limits}")
        return "\n\n".join(parts) + "\n"

    def _front_matter(self) -> str:
        import yaml

        plain = {k: v if isinstance(v, str) else list(v) for k, v in self.front_matter.items()}
        return f"---\n{yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)}---"

    def _measurements(self) -> str:
        rows = "\n".join(f"| {m.what} | {m.value} | `{m.command}` |" for m in self.measurements)
        return f"## Measured\n\n| what | result | command |\n|---|---|---|\n{rows}"

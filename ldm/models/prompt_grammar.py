r"""The grammar of prompts in A1111 and programs like it: weights, changes during sampling, chunks and compositions.

    (word:1.3)      the weight of a word; (word) is 1.1, [word] is 1/1.1, and brackets multiply
    [from:to:0.5]   a change of the prompt, after half of the steps; [from:to:10] after 10 steps
    [to:0.5]        added after half of the steps; [from::0.5] removed then
    [a|b]           a and b in turn, one step each
    BREAK           what follows begins a new chunk of the text encoder
    a AND b :0.7    two prompts whose predictions are added, the second with weight 0.7
    \( \) \[ \]     brackets as text; so are \: \| and \\

Text that is not in this form is taken as it is written, so every text can be read: a bracket that closes nothing is
text, and one that is never closed reaches to the end.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field

ROUND, SQUARE = 1.1, 1 / 1.1
"""The factors of (word) and [word]."""

LARGEST_WEIGHT = 100.0
"""Weights beyond it, in either direction, are reduced to it: a thousand brackets would overflow."""

_NUMBER = r"[-+]?(?:\d{1,6}\.?\d{0,9}|\.\d{1,9})"
_TOKENS = re.compile(r"\\.|[\[\]():|]|[^\\\[\]():|]+|\\", re.DOTALL)
_WEIGHT_TOKENS = re.compile(
    rf"\\[()\[\]\\:|]|[()\[\]]|:\s*(?P<weight>{_NUMBER})\s*\)|\b(?P<break>BREAK)\b|[^\\()\[\]:B]+|.",
    re.DOTALL,
)
_AND = re.compile(r"\bAND\b")
_PART = re.compile(rf"(?P<text>.*?)(?:(?<!\\):\s*(?P<weight>{_NUMBER})\s*)?", re.DOTALL)


@dataclass(frozen=True)
class ComposedPrompt:
    """One of the prompts that are joined by AND."""

    text: str
    weight: float = 1.0


@dataclass(frozen=True)
class WeightedText:
    """Text without the grammar's marks, and the weight of each of its characters; BREAK separates such texts."""

    text: str
    weights: tuple[float, ...]


def composed_prompts(prompt: str) -> list[ComposedPrompt]:
    """The prompts that AND joins, empty ones left out; without AND, the whole prompt with weight 1."""
    parts = _AND.split(prompt)
    if len(parts) == 1:
        return [ComposedPrompt(prompt)]
    found = [match for part in parts if (match := _PART.fullmatch(part)) and match["text"].strip()]
    read = [ComposedPrompt(match["text"].strip(), _bounded(float(match["weight"] or 1))) for match in found]
    return read or [ComposedPrompt("")]


@dataclass
class _Bracket:
    """An open bracket, or the whole prompt, whose `opener` is empty: what stands in it between : and |."""

    opener: str = ""
    pieces: list[str] = field(default_factory=lambda: [""])
    separators: list[str] = field(default_factory=list)

    def add(self, text: str) -> None:
        self.pieces[-1] += text

    def written(self) -> str:
        """Its content as it was written, without a closing bracket."""
        between = (
            separator + piece for separator, piece in zip(self.separators, self.pieces[1:], strict=True)
        )
        return self.opener + self.pieces[0] + "".join(between)


def prompt_at_step(prompt: str, index: int, num_steps: int) -> str:
    """The prompt at one of the sampling steps, with its changes carried out; weights and BREAK are left in it.

    Args:
        index: of the step, from 0.
        num_steps: of the whole sampling; in `[from:to:0.5]` the number is a share of it.
    """
    opened = [_Bracket()]
    for token in _TOKENS.findall(prompt):
        top = opened[-1]
        if token in ("[", "("):
            opened.append(_Bracket(token))
        elif token in (":", "|") and top.opener == "[":
            top.separators.append(token)
            top.pieces.append("")
        elif token == "]" and any(each.opener == "[" for each in opened):
            while opened[-1].opener != "[":
                _leave(opened, _Bracket.written)
            _leave(opened, lambda bracket: _square_at(bracket, index, num_steps))
        elif token == ")" and top.opener == "(":
            _leave(opened, lambda bracket: bracket.written() + ")")
        else:
            top.add(token)
    while len(opened) > 1:
        _leave(opened, _Bracket.written)
    return opened[0].written()


def _leave(opened: list[_Bracket], to_text: Callable[[_Bracket], str]) -> None:
    text = to_text(opened.pop())
    opened[-1].add(text)


def _square_at(bracket: _Bracket, index: int, num_steps: int) -> str:
    """What a square bracket stands for at a step: one of its alternatives, what is before or after, or itself."""
    if "|" in bracket.separators:
        options = _joined_colons(bracket)
        return options[index % len(options)]
    when = bracket.pieces[-1].strip()
    if len(bracket.pieces) in (2, 3) and re.fullmatch(_NUMBER, when):
        before, after = bracket.pieces[:-1] if len(bracket.pieces) == 3 else ("", bracket.pieces[0])
        changes_at = int(float(when) * num_steps) if "." in when else int(when)
        return before if index < changes_at else after
    return bracket.written() + "]"


def _joined_colons(bracket: _Bracket) -> list[str]:
    """The pieces between |, in which : is text."""
    options = [bracket.pieces[0]]
    for separator, piece in zip(bracket.separators, bracket.pieces[1:], strict=True):
        if separator == "|":
            options.append(piece)
        else:
            options[-1] += separator + piece
    return options


def weighted_texts(prompt: str) -> list[WeightedText]:
    """The text of a prompt with the weight of each character, one entry for each part between BREAK."""
    runs: list[tuple[str, bool]] = []  # text, and whether a chunk ends here
    weights: list[float] = []
    opened: dict[str, list[int]] = {"(": [], "[": []}
    for match in _WEIGHT_TOKENS.finditer(prompt):
        token = match[0]
        if token in opened:
            opened[token].append(len(runs))
        elif match["weight"] and opened["("]:
            _multiply(weights, opened["("].pop(), float(match["weight"]))
        elif token == ")" and opened["("]:
            _multiply(weights, opened["("].pop(), ROUND)
        elif token == "]" and opened["["]:
            _multiply(weights, opened["["].pop(), SQUARE)
        else:
            is_escape = len(token) > 1 and token[0] == "\\"
            runs.append(("", True) if match["break"] else (token[1:] if is_escape else token, False))
            weights.append(1.0)
    for opener, factor in (("(", ROUND), ("[", SQUARE)):
        for start in opened[opener]:
            _multiply(weights, start, factor)
    return _parts(runs, [_bounded(weight) for weight in weights])


def _multiply(weights: list[float], start: int, factor: float) -> None:
    weights[start:] = [_bounded(weight * factor) for weight in weights[start:]]


def _bounded(weight: float) -> float:
    return math.copysign(min(abs(weight), LARGEST_WEIGHT), weight)


def _parts(runs: list[tuple[str, bool]], weights: list[float]) -> list[WeightedText]:
    parts: list[tuple[list[str], list[float]]] = [([], [])]
    for (text, ends_chunk), weight in zip(runs, weights, strict=True):
        if ends_chunk:
            parts.append(([], []))
        parts[-1][0].append(text)
        parts[-1][1].extend([weight] * len(text))
    return [WeightedText("".join(texts), tuple(each)) for texts, each in parts]

"""Drawn scenes with exact captions, without end: what is in the picture, and its caption read back.

A scene is one thing ("a small red circle"), two things in a relation ("a small red circle above a large blue
square") or two to four equal things ("three small green triangles"). The background is named when it is not
white, and only then: "a large blue star on a black background". Some combinations are held out of training,
so that following a new one can be measured. `shapes_drawing` draws a scene, `shapes_judge` reads it back.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import count
from typing import TypeVar

from ldm.errors import UserError, unknown_name
from ldm.noise import choice

Colour = tuple[int, int, int]
T = TypeVar("T")

SHAPES = ("circle", "square", "triangle", "star", "cross")
SIZES = ("small", "large")
COLOURS: dict[str, Colour] = {
    "red": (220, 30, 40),
    "orange": (250, 130, 20),
    "yellow": (250, 225, 45),
    "green": (30, 150, 60),
    "cyan": (40, 205, 225),
    "blue": (30, 75, 225),
    "purple": (145, 45, 190),
    "pink": (250, 120, 195),
}
BACKGROUNDS: dict[str, Colour] = {
    "white": (255, 255, 255),
    "grey": (150, 150, 150),
    "black": (0, 0, 0),
    "brown": (105, 70, 40),
}
RELATIONS = ("above", "below", "to the left of", "to the right of")
NUMBERS = {"two": 2, "three": 3, "four": 4}

HELD_OUT_LOOKS = frozenset(
    {
        ("circle", "cyan"),
        ("square", "orange"),
        ("square", "purple"),
        ("triangle", "blue"),
        ("star", "pink"),
        ("cross", "green"),
    }
)
"""(shape, colour): 6 of 40, so each shape keeps at least six colours and each colour at least four shapes."""

HELD_OUT_VERTICAL = frozenset(
    {("circle", "star"), ("triangle", "square"), ("cross", "triangle"), ("star", "cross")}
)
"""(upper shape, lower shape): 4 of 25, in both wordings: "A above B" and "B below A" are one picture."""

HELD_OUT_HORIZONTAL = frozenset(
    {("square", "circle"), ("star", "triangle"), ("circle", "cross"), ("triangle", "star")}
)
"""(left shape, right shape): 4 of 25, in both wordings."""


@dataclass(frozen=True)
class Thing:
    """One drawn thing: a name out of SHAPES, COLOURS and SIZES each.

    Raises:
        UserError: a name is in none of them.
    """

    shape: str
    colour: str
    size: str

    def __post_init__(self) -> None:
        _check_name("shape", self.shape, SHAPES)
        _check_name("colour", self.colour, COLOURS)
        _check_name("size", self.size, SIZES)

    def __str__(self) -> str:
        return f"{self.size} {self.colour} {self.shape}"


@dataclass(frozen=True)
class Scene:
    """What a picture shows.

    Attributes:
        things: one thing; or two with a relation; or two to four equal ones without.
        relation: how the first of two things stands to the second, out of RELATIONS, or None.
        background: a name out of BACKGROUNDS.

    Raises:
        UserError: the relation or the background is outside the lists.
        ValueError: things and relation make none of the three kinds.
    """

    things: tuple[Thing, ...]
    relation: str | None = None
    background: str = "white"

    def __post_init__(self) -> None:
        _check_name("background", self.background, BACKGROUNDS)
        if self.relation is not None:
            _check_name("relation", self.relation, RELATIONS)
        equal = len(set(self.things)) == 1 and len(self.things) <= 4
        if not (len(self.things) == 2 if self.relation else equal):
            raise ValueError("a scene is one thing, two in a relation, or two to four equal things")

    @property
    def caption(self) -> str:
        """The scene in words; `parse_caption` reads it back."""
        where = "" if self.background == "white" else f" on a {self.background} background"
        return self._things_in_words() + where

    def _things_in_words(self) -> str:
        if self.relation:
            return f"a {self.things[0]} {self.relation} a {self.things[1]}"
        if len(self.things) == 1:
            return f"a {self.things[0]}"
        number = next(word for word, number in NUMBERS.items() if number == len(self.things))
        return f"{number} {_plural(str(self.things[0]))}"


def _check_name(kind: str, name: str, choices: Collection[str]) -> None:
    if name not in choices:
        raise unknown_name(kind, name, choices)


def _plural(noun: str) -> str:
    return noun + ("es" if noun.endswith("s") else "s")


def parse_caption(text: str) -> Scene:
    """The scene that a caption tells of, so that a judge needs only the prompt.

    A white background may be named, though captions leave it out.

    Raises:
        UserError: the text is not in the grammar of these captions, or holds a name outside the lists.
    """
    body, _, where = text.strip().partition(" on a ")
    background = where.removesuffix(" background") if where else "white"
    relation = next((name for name in RELATIONS if f" {name} " in body), None)
    parts = body.split(f" {relation} ") if relation else [body]
    try:
        scene = Scene(tuple(thing for part in parts for thing in _parse_things(part)), relation, background)
    except (KeyError, ValueError):
        raise _no_caption(text) from None
    if text.strip().removesuffix(" on a white background") != scene.caption:
        raise _no_caption(text)
    return scene


def _parse_things(words: str) -> tuple[Thing, ...]:
    """ "a small red circle" is one thing, "three small red circles" are three."""
    number, size, colour, noun = words.split()
    if number == "a":
        return (Thing(noun, colour, size),)
    shapes = {_plural(shape): shape for shape in SHAPES}
    return (Thing(shapes.get(noun, noun), colour, size),) * NUMBERS[number]


def _no_caption(text: str) -> UserError:
    example = "a small red circle above a large blue square on a black background"
    return UserError(f"{text!r} is no caption of a drawn scene", f'write it like "{example}"')


def scene_for(seed: int, index: int) -> Scene:
    """Scene `index` of the endless set `seed`, held-out combinations included; a pure function.

    Half of the scenes have two things in a relation, a quarter one thing, a quarter a number of equal things;
    half have a white background. The two things of a relation differ in colour, so it shows which is which.
    """
    return _sample(seed, index, 0)


def training_scene(seed: int, index: int, *, plain: bool = False) -> Scene:
    """Scene `index` of the endless training set `seed`: never a held-out combination.

    Args:
        plain: only one large thing, or two in a relation, on white.
    """
    return _first_sample(seed, index, held_out=False, plain=plain)


def held_out_scene(seed: int, index: int, *, plain: bool = False) -> Scene:
    """Scene `index` of the endless set `seed` of held-out combinations; `plain` as in `training_scene`."""
    return _first_sample(seed, index, held_out=True, plain=plain)


def is_plain(scene: Scene) -> bool:
    """Whether it shows one large thing, or two in a relation, on white: what a small picture still shows clearly."""
    few = scene.relation is not None or len(scene.things) == 1
    return few and scene.background == "white" and all(thing.size == "large" for thing in scene.things)


def is_held_out(scene: Scene) -> bool:
    """Whether the scene has a (shape, colour) or an arrangement of shapes that training never shows."""
    if any((thing.shape, thing.colour) in HELD_OUT_LOOKS for thing in scene.things):
        return True
    if scene.relation is None:
        return False
    first, second = (thing.shape for thing in scene.things)
    pair = (first, second) if scene.relation in ("above", "to the left of") else (second, first)
    return pair in (HELD_OUT_VERTICAL if scene.relation in ("above", "below") else HELD_OUT_HORIZONTAL)


def _first_sample(seed: int, index: int, *, held_out: bool, plain: bool) -> Scene:
    """The first try that is held out, or is not, and plain, as asked (rejection; each try has its own key)."""
    tries = (_sample(seed, index, attempt) for attempt in count())
    return next(s for s in tries if is_held_out(s) == held_out and (is_plain(s) or not plain))


def _sample(seed: int, index: int, attempt: int) -> Scene:
    """One scene, each of its choices a draw of its own."""

    def pick(what: str, choices: Sequence[T]) -> T:
        return choices[choice(len(choices), "shapes", seed, index, attempt, what)]

    background = "white" if pick("plain", [True, False]) else pick("background", list(BACKGROUNDS)[1:])
    first = Thing(pick("shape", SHAPES), pick("colour", list(COLOURS)), pick("size", SIZES))
    match pick("kind", ["pair", "pair", "one", "many"]):
        case "one":
            return Scene((first,), None, background)
        case "many":
            return Scene((first,) * pick("number", list(NUMBERS.values())), None, background)
    others = [colour for colour in COLOURS if colour != first.colour]
    second = Thing(pick("shape 2", SHAPES), pick("colour 2", others), pick("size 2", SIZES))
    return Scene((first, second), pick("relation", RELATIONS), background)

"""An endless supply of scenes with exact captions, and captions parsed back into scenes.

A scene is one thing ("a small red circle"), two things in a relation ("a small red circle above a large blue square")
or two to four equal things ("three small green triangles"). The background is named only if it is not white: "a large
blue star on a black background". Some combinations are held out of training, to measure how well a model follows new
ones. `shapes_drawing` draws a scene, and `shapes_judge` recognises what an image shows.
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
"""(shape, colour): 6 of 40. Each shape keeps at least six colours, and each colour at least four shapes."""

HELD_OUT_VERTICAL = frozenset(
    {("circle", "star"), ("triangle", "square"), ("cross", "triangle"), ("star", "cross")}
)
"""(upper shape, lower shape): 4 of 25, in both wordings, since "A above B" and "B below A" are the same image."""

HELD_OUT_HORIZONTAL = frozenset(
    {("square", "circle"), ("star", "triangle"), ("circle", "cross"), ("triangle", "star")}
)
"""(left shape, right shape): 4 of 25, in both wordings."""


@dataclass(frozen=True)
class Thing:
    """One thing in a scene, with names from SHAPES, COLOURS and SIZES.

    Raises:
        UserError: a name is not in its list.
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
    """What an image shows.

    Attributes:
        things: one thing; or two with a relation; or two to four equal ones without a relation.
        relation: the position of the first of two things relative to the second, from RELATIONS, or None.
        background: a name from BACKGROUNDS.

    Raises:
        UserError: the relation or background is not in its list.
        ValueError: things and relation do not form one of the three kinds of scene.
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
        """The scene in words; `parse_caption` is the inverse."""
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
    """The scene that a caption describes, so that a judge needs only the prompt.

    A white background may be named, although `Scene.caption` leaves it out.

    Raises:
        UserError: the text does not follow the grammar of these captions, or uses an unknown name.
    """
    body, _, where = text.strip().partition(" on a ")
    background = where.removesuffix(" background") if where else "white"
    relation = next((name for name in RELATIONS if f" {name} " in body), None)
    parts = body.split(f" {relation} ") if relation else [body]
    try:
        scene = Scene(tuple(thing for part in parts for thing in _parse_things(part)), relation, background)
    except (KeyError, ValueError):
        raise _not_a_caption(text) from None
    if text.strip().removesuffix(" on a white background") != scene.caption:
        raise _not_a_caption(text)
    return scene


def _parse_things(words: str) -> tuple[Thing, ...]:
    """One thing for "a small red circle", three for "three small red circles"."""
    number, size, colour, noun = words.split()
    if number == "a":
        return (Thing(noun, colour, size),)
    shapes = {_plural(shape): shape for shape in SHAPES}
    return (Thing(shapes.get(noun, noun), colour, size),) * NUMBERS[number]


def _not_a_caption(text: str) -> UserError:
    example = "a small red circle above a large blue square on a black background"
    return UserError(f"{text!r} is not a caption of a drawn scene", f'write it like "{example}"')


def scene_for(seed: int, index: int) -> Scene:
    """Scene `index` of the endless set `seed`, including held-out combinations; a pure function.

    Half of the scenes have two things in a relation, a quarter have one thing, a quarter several equal things; half
    have a white background. The two things in a relation differ in colour, so that they can be told apart.
    """
    return _sample(seed, index, 0)


def training_scene(seed: int, index: int, *, plain: bool = False) -> Scene:
    """Scene `index` of the endless training set `seed`: never a held-out combination.

    Args:
        plain: only scenes with one large thing, or two in a relation, on white.
    """
    return _first_sample(seed, index, held_out=False, plain=plain)


def held_out_scene(seed: int, index: int, *, plain: bool = False) -> Scene:
    """Scene `index` of the endless set `seed` of held-out combinations; `plain` as in `training_scene`."""
    return _first_sample(seed, index, held_out=True, plain=plain)


def is_plain(scene: Scene) -> bool:
    """Whether it has one large thing, or two in a relation, on white; such scenes are clear even in small images."""
    few = scene.relation is not None or len(scene.things) == 1
    return few and scene.background == "white" and all(thing.size == "large" for thing in scene.things)


def is_held_out(scene: Scene) -> bool:
    """Whether the scene has a (shape, colour) or an arrangement of shapes that never occurs in training."""
    if any((thing.shape, thing.colour) in HELD_OUT_LOOKS for thing in scene.things):
        return True
    if scene.relation is None:
        return False
    first, second = (thing.shape for thing in scene.things)
    pair = (first, second) if scene.relation in ("above", "to the left of") else (second, first)
    return pair in (HELD_OUT_VERTICAL if scene.relation in ("above", "below") else HELD_OUT_HORIZONTAL)


def _first_sample(seed: int, index: int, *, held_out: bool, plain: bool) -> Scene:
    """Rejection sampling: the first attempt that satisfies `held_out` and `plain`; each attempt has its own key."""
    tries = (_sample(seed, index, attempt) for attempt in count())
    return next(s for s in tries if is_held_out(s) == held_out and (is_plain(s) or not plain))


def _sample(seed: int, index: int, attempt: int) -> Scene:
    """One scene; each choice is a separate draw."""

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

"""Composed emoji scenes, their exact captions, and the combinations that are held out of training.

A scene is an object in a colour ("a blue apple"), an object on a background ("a rocket on a pink background"), two
objects beside each other or one above the other ("a dog and a rocket", "a dog above a rocket"), or two to four equal
objects ("two apples", "three blue apples"). A scene has several captions, and all of them are true of its image.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any, Literal

from ldm.demos.emoji_captions import with_article
from ldm.demos.emoji_colours import COLOURS
from ldm.demos.emoji_objects import EmojiObject
from ldm.errors import UserError
from ldm.noise import choice, uniform

Kind = Literal["colour", "background", "count", "pair"]
KINDS: tuple[Kind, ...] = ("colour", "background", "count", "pair")
NUMBERS = {"two": 2, "three": 3, "four": 4}
LAYOUTS = ("beside", "above")
"""Of two different objects: the first is to the left of the second, or above it."""

BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "red": (232, 112, 106),
    "orange": (250, 182, 110),
    "yellow": (252, 236, 140),
    "green": (150, 214, 150),
    "blue": (138, 184, 246),
    "purple": (188, 150, 232),
    "pink": (250, 190, 214),
    "grey": (170, 170, 170),
}

PAIR_SHARE = 0.1
"""The share of the pairs of objects that is held out."""

NAMED_HELD_OUT = {
    "colour": (("apple", "blue"),),
    "background": (("rocket", "pink"),),
    "count": (("apple", "two"),),
    "pair": (("dog", "rocket"),),
}
"""Held out in any case, since they are the README's examples of what the model has not seen."""

_NAMED_COLOURS = {"apple": ("red", "green"), "heart": ("red", "blue", "green", "yellow")}
"""The colours of which there is a plain emoji."""


@dataclass(frozen=True)
class Thing:
    """An object, in one of `COLOURS` or as it is."""

    noun: str
    colour: str | None = None

    def __str__(self) -> str:
        return f"{self.colour} {self.noun}" if self.colour else self.noun


@dataclass(frozen=True)
class Scene:
    """What an image shows.

    Attributes:
        things: one; two different ones with a layout; or two to four equal ones.
        layout: of two different things, from `LAYOUTS`.
        background: a name from `BACKGROUNDS`, or None for white.

    Raises:
        ValueError: the things and the layout do not form a scene.
    """

    things: tuple[Thing, ...]
    layout: str | None = None
    background: str | None = None

    def __post_init__(self) -> None:
        different = len(set(self.things)) == len(self.things) == 2 and self.layout in LAYOUTS
        equal = len(set(self.things)) == 1 and len(self.things) <= 4 and self.layout is None
        if not (different or equal):
            raise ValueError("a scene is one thing, two in a layout, or two to four equal things")

    @property
    def kind(self) -> Kind:
        """What is composed."""
        if self.layout is not None:
            return "pair"
        if len(self.things) > 1:
            return "count"
        return "colour" if self.background is None else "background"

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, value: Any) -> "Scene":
        """The inverse of `to_dict`.

        Raises:
            KeyError, TypeError, ValueError: it is no such value.
        """
        return cls(tuple(Thing(**thing) for thing in value["things"]), value["layout"], value["background"])


def captions_of_scene(scene: Scene, plurals: Mapping[str, str]) -> list[str]:
    """The captions of a scene, the plainest first.

    Args:
        plurals: noun -> plural.
    """
    if scene.kind == "pair":
        first, second = (with_article(str(thing)) for thing in scene.things)
        return _pair_captions(first, second, scene.layout)
    thing = scene.things[0]
    if scene.kind == "count":
        number = next(word for word, value in NUMBERS.items() if value == len(scene.things))
        words = (number, thing.colour, plurals[thing.noun])
        return [" ".join(word for word in words if word)]
    if scene.background is not None:
        return [
            f"{with_article(str(thing))} on a{'n' * (scene.background == 'orange')} {scene.background} background"
        ]
    return [with_article(str(thing)), str(thing)]


def _pair_captions(first: str, second: str, layout: str | None) -> list[str]:
    if layout == "above":
        return [f"{first} above {second}", f"{second} below {first}"]
    return [
        f"{first} and {second}",
        f"{first} to the left of {second}",
        f"{second} to the right of {first}",
    ]


@dataclass(frozen=True)
class HeldOut:
    """The combinations that never occur in training, each as a sorted tuple of two words.

    Attributes:
        colour: (noun, colour).
        background: (noun, background).
        count: (noun, number word), in any colour.
        pair: (noun, noun) in alphabetical order, in any layout.
    """

    colour: frozenset[tuple[str, str]]
    background: frozenset[tuple[str, str]]
    count: frozenset[tuple[str, str]]
    pair: frozenset[tuple[str, str]]

    def __contains__(self, scene: Scene) -> bool:
        """Whether any combination in a scene is held out."""
        first = scene.things[0]
        nouns = sorted(thing.noun for thing in scene.things)
        number = next((word for word, value in NUMBERS.items() if value == len(scene.things)), "")
        return (
            any((thing.noun, thing.colour) in self.colour for thing in scene.things)
            or (first.noun, scene.background) in self.background
            or (scene.layout is None and (first.noun, number) in self.count)
            or (scene.layout is not None and (nouns[0], nouns[1]) in self.pair)
        )

    def to_dict(self) -> dict[str, list[list[str]]]:
        """Sorted lists, for JSON."""
        return {kind: [list(each) for each in sorted(getattr(self, kind))] for kind in KINDS}

    @classmethod
    def from_dict(cls, value: Any) -> "HeldOut":
        """The inverse of `to_dict`.

        Raises:
            UserError: a list is missing or damaged.
        """
        try:
            return cls(
                **{kind: frozenset((first, second) for first, second in value[kind]) for kind in KINDS}
            )
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"the held-out combinations lack {error}", "make the data again") from error


def choose_held_out(objects: Sequence[EmojiObject]) -> HeldOut:
    """One colour, background and number for each object, and a tenth of the pairs; the same in every run.

    An object is never held out in its own colour, which the plain emoji show.
    """
    nouns = [one.noun for one in objects]
    colour, background, count = set(), set(), set()
    for one in objects:
        key = ("emoji held out", one.noun)
        if one.takes_colours:
            others = [name for name in COLOURS if name not in _seen_colours(one)]
            colour.add((one.noun, others[choice(len(others), *key, "colour")]))
        background.add((one.noun, list(BACKGROUNDS)[choice(len(BACKGROUNDS), *key, "background")]))
        count.add((one.noun, list(NUMBERS)[choice(len(NUMBERS), *key, "count")]))
    pair = {
        (first, second)
        for first, second in combinations(sorted(nouns), 2)
        if uniform("emoji held out", first, second, "pair") < PAIR_SHARE
    }
    found = {"colour": colour, "background": background, "count": count, "pair": pair}
    for kind, named in NAMED_HELD_OUT.items():
        found[kind] |= {each for each in named if each[0] in nouns and (kind != "pair" or each[1] in nouns)}
    return HeldOut(**{kind: frozenset(each) for kind, each in found.items()})


def _seen_colours(one: EmojiObject) -> set[str]:
    """The colours that plain emoji of the same noun have: those named ("green apple"), and the object's own."""
    assert one.main is not None
    return {one.main.name, *_NAMED_COLOURS.get(one.noun, ())}


def training_scenes(
    objects: Sequence[EmojiObject],
    held_out: HeldOut,
    *,
    num_pairs: int,
    num_coloured_counts: int,
    seed: int = 0,
) -> dict[Kind, list[Scene]]:
    """The scenes to train on: all colours, backgrounds and plain counts, and some pairs and coloured counts."""
    nouns = [one.noun for one in objects]
    things = [Thing(one.noun, colour) for one in objects if one.takes_colours for colour in COLOURS]
    plain = [Scene((Thing(noun),) * number) for noun in nouns for number in NUMBERS.values()]
    coloured = [Scene((thing,) * number) for thing in things for number in NUMBERS.values()]
    scenes: dict[Kind, list[Scene]] = {
        "colour": [Scene((thing,)) for thing in things],
        "background": [Scene((Thing(noun),), background=name) for noun in nouns for name in BACKGROUNDS],
        "count": plain + _some(coloured, num_coloured_counts, held_out, seed),
        "pair": list(_pairs(nouns, num_pairs, held_out, seed)),
    }
    return {kind: [scene for scene in found if scene not in held_out] for kind, found in scenes.items()}


def _some(scenes: Sequence[Scene], number: int, held_out: HeldOut, seed: int) -> list[Scene]:
    """The first `number` of the scenes that are not held out, in an order drawn from `seed`."""
    allowed = [scene for scene in scenes if scene not in held_out]
    return sorted(allowed, key=lambda scene: uniform(seed, str(scene), "emoji counts"))[:number]


def _pairs(nouns: Sequence[str], number: int, held_out: HeldOut, seed: int) -> Iterator[Scene]:
    """`number` different scenes of two objects."""
    seen: set[Scene] = set()
    draw = 0
    while len(seen) < number and draw < 100 * number:
        key, draw = (seed, draw, "emoji pair"), draw + 1
        first, second = (nouns[choice(len(nouns), *key, place)] for place in ("first", "second"))
        if first == second:
            continue
        scene = Scene((Thing(first), Thing(second)), LAYOUTS[choice(len(LAYOUTS), *key, "layout")])
        if scene not in held_out and scene not in seen:
            seen.add(scene)
            yield scene


def held_out_scenes(held_out: HeldOut, kind: Kind, objects: Sequence[EmojiObject]) -> list[Scene]:
    """The held-out combinations of a kind as scenes, the named ones first, else in an order drawn by key.

    A pair is in one of its four arrangements. A count is in the object's own colours.
    """
    combos = sorted(getattr(held_out, kind), key=lambda each: uniform("emoji test order", *each))
    combos.sort(key=lambda each: each not in NAMED_HELD_OUT[kind])
    return [_scene_of(kind, each) for each in combos]


def _scene_of(kind: Kind, combo: tuple[str, str]) -> Scene:
    noun, other = combo
    if kind == "colour":
        return Scene((Thing(noun, other),))
    if kind == "background":
        return Scene((Thing(noun),), background=other)
    if kind == "count":
        return Scene((Thing(noun),) * NUMBERS[other])
    things = (Thing(noun), Thing(other))
    order = choice(2, "emoji test pair order", noun, other)
    layout = LAYOUTS[choice(2, "emoji test pair layout", noun, other)]
    return Scene(things if order == 0 else things[::-1], layout)

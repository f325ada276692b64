"""Composed scenes: exact captions, held-out combinations, drawings, and the judge that reads them back."""

from collections.abc import Iterator
from itertools import combinations

import numpy as np
import pytest
from PIL import Image

from ldm.demos.emoji_colours import COLOURS, main_colour
from ldm.demos.emoji_judge import SceneJudge, agrees
from ldm.demos.emoji_objects import EmojiObject, noun_of, plural_of
from ldm.demos.emoji_scenes import (
    BACKGROUNDS,
    KINDS,
    LAYOUTS,
    NUMBERS,
    HeldOut,
    Scene,
    Thing,
    captions_of_scene,
    choose_held_out,
    held_out_scenes,
    training_scenes,
)
from ldm.demos.emoji_scenes_drawing import Artwork
from ldm.demos.emoji_source import Emoji

NOUNS = ("apple", "dog", "rocket", "heart", "box", "key")


def cutout(index: int) -> np.ndarray:
    """[64, 64, 4]: a red or white bar pattern that differs from noun to noun."""
    image = np.zeros((64, 64, 4), np.uint8)
    rows, columns = 16 + 8 * (index % 3), 16 + 16 * (index // 3)
    image[32 - rows : 32 + rows, 32 - columns // 2 : 32 + columns // 2] = (210, 40, 30, 255)
    if index == 2:
        image[..., :3] //= 3
        image[..., 2] = 90
    return image


@pytest.fixture(scope="module")
def artwork() -> Artwork:
    cutouts = {noun: cutout(index) for index, noun in enumerate(NOUNS)}
    objects = [EmojiObject(noun, plural_of(noun), noun, main_colour(cutouts[noun])) for noun in NOUNS]
    return Artwork(objects, cutouts, 32)


@pytest.fixture(scope="module")
def objects(artwork: Artwork) -> list[EmojiObject]:
    return list(artwork.objects.values())


def scenes_of(objects: list[EmojiObject]) -> Iterator[Scene]:
    """Scenes of every kind, colour, background, number and layout."""
    yield from (Scene((Thing("apple", colour),)) for colour in COLOURS)
    yield from (Scene((Thing("key"),), background=name) for name in BACKGROUNDS)
    for thing in (Thing("dog"), Thing("box", "blue")):
        yield from (Scene((thing,) * number) for number in NUMBERS.values())
    for first, second in (("dog", "rocket"), ("rocket", "dog")):
        yield from (Scene((Thing(first), Thing(second)), layout) for layout in LAYOUTS)


# Captions


@pytest.mark.parametrize(
    ("scene", "captions"),
    [
        (Scene((Thing("apple", "blue"),)), ["a blue apple", "blue apple"]),
        (Scene((Thing("apple", "orange"),)), ["an orange apple", "orange apple"]),
        (Scene((Thing("apple"),), background="orange"), ["an apple on an orange background"]),
        (Scene((Thing("key"),), background="pink"), ["a key on a pink background"]),
        (Scene((Thing("box"),) * 2), ["two boxes"]),
        (Scene((Thing("apple", "red"),) * 3), ["three red apples"]),
        (
            Scene((Thing("dog"), Thing("apple")), "beside"),
            ["a dog and an apple", "a dog to the left of an apple", "an apple to the right of a dog"],
        ),
        (
            Scene((Thing("dog"), Thing("apple")), "above"),
            ["a dog above an apple", "an apple below a dog"],
        ),
    ],
)
def test_captions_say_what_the_image_shows(scene: Scene, captions: list[str]) -> None:
    assert captions_of_scene(scene, {noun: plural_of(noun) for noun in NOUNS}) == captions
    assert Scene.from_dict(scene.to_dict()) == scene


@pytest.mark.parametrize(
    ("things", "layout"),
    [
        (("dog", "dog"), "beside"),
        (("dog", "apple"), None),
        (("dog",) * 5, None),
        (("dog", "apple"), "inside"),
    ],
)
def test_other_scenes_do_not_exist(things: tuple[str, ...], layout: str | None) -> None:
    with pytest.raises(ValueError, match="a scene is"):
        Scene(tuple(Thing(noun) for noun in things), layout)


@pytest.mark.parametrize(
    ("noun", "plural"),
    [("apple", "apples"), ("fox", "foxes"), ("candy", "candies"), ("key", "keys"), ("deer", "deer")],
)
def test_plurals(noun: str, plural: str) -> None:
    assert plural_of(noun) == plural


@pytest.mark.parametrize(
    ("name", "subgroup", "noun"),
    [
        ("red apple", "food-fruit", "apple"),
        ("rocket", "transport-air", "rocket"),
        ("hot dog", "food-prepared", None),
        ("skull", "face-negative", None),
        ("grapes", "food-fruit", None),
        ("tornado", "sky-weather", None),
    ],
)
def test_nouns_are_one_word_for_one_thing(name: str, subgroup: str, noun: str | None) -> None:
    assert noun_of(Emoji("1F34E", name, (), "food-drink", subgroup, 1)) == noun


# Held-out combinations


def test_no_training_scene_contains_a_held_out_combination(objects: list[EmojiObject]) -> None:
    held_out = choose_held_out(objects)
    assert HeldOut.from_dict(held_out.to_dict()) == held_out == choose_held_out(objects)
    scenes = training_scenes(objects, held_out, num_pairs=200, num_coloured_counts=50)
    for scene in (scene for found in scenes.values() for scene in found):
        nouns = [thing.noun for thing in scene.things]
        assert not {(thing.noun, thing.colour) for thing in scene.things} & held_out.colour
        assert (nouns[0], scene.background) not in held_out.background
        if scene.kind == "count":
            assert (nouns[0], ["two", "three", "four"][len(nouns) - 2]) not in held_out.count
        if scene.kind == "pair":
            assert tuple(sorted(nouns)) not in held_out.pair


def test_every_object_is_tested_and_trained_in_every_kind(objects: list[EmojiObject]) -> None:
    held_out = choose_held_out(objects)
    scenes = training_scenes(objects, held_out, num_pairs=200, num_coloured_counts=50)
    assert len(scenes["colour"]) == len(set(scenes["colour"])) == 6 * 9 - len(held_out.colour)
    for kind in KINDS:
        assert {thing.noun for scene in scenes[kind] for thing in scene.things} == set(NOUNS)
        tested = held_out_scenes(held_out, kind, objects)
        assert tested and all(scene.kind == kind and scene in held_out for scene in tested)
    for kind in ("colour", "background", "count"):
        assert {scene.things[0].noun for scene in held_out_scenes(held_out, kind, objects)} == set(NOUNS)
    # the examples of the README come first
    assert held_out_scenes(held_out, "colour", objects)[0] == Scene((Thing("apple", "blue"),))
    assert ("dog", "rocket") in held_out.pair and ("apple", "two") in held_out.count


def test_no_object_is_held_out_in_a_colour_that_plain_emoji_show(objects: list[EmojiObject]) -> None:
    held_out = choose_held_out(objects).colour
    assert all(one.main is not None and (one.noun, one.main.name) not in held_out for one in objects)
    assert not {("apple", "green"), ("heart", "blue"), ("heart", "green"), ("heart", "yellow")} & held_out


def test_damaged_lists_are_refused() -> None:
    from ldm.errors import UserError

    for value in ({}, [], {"colour": [["a"]], "background": [], "count": [], "pair": []}):
        with pytest.raises(UserError, match="make the data again"):
            HeldOut.from_dict(value)


# Drawing and judging


def test_the_judge_reads_every_drawing(artwork: Artwork, objects: list[EmojiObject]) -> None:
    judge = SceneJudge(artwork)
    for scene in scenes_of(objects):
        [seen] = judge.judge([artwork.draw(scene)], scene.kind)
        assert all(agrees(scene, seen).values()), (scene, seen)


def test_each_mistake_lowers_its_own_attribute() -> None:
    blue = Scene((Thing("apple", "blue"),))
    assert agrees(blue, Scene((Thing("apple", "red"),))) == {"object": True, "colour": False}
    assert agrees(blue, Scene((Thing("dog", "blue"),))) == {"object": False, "colour": True}
    two = Scene((Thing("dog"),) * 2)
    assert agrees(two, Scene((Thing("dog"),) * 3)) == {"object": True, "number": False}
    placed = Scene((Thing("dog"),), background="red")
    assert agrees(placed, Scene((Thing("dog"),))) == {"object": True, "background": False}
    pair = Scene((Thing("dog"), Thing("key")), "beside")
    turned = Scene((Thing("key"), Thing("dog")), "beside")
    assert agrees(pair, turned) == {"object": True, "layout": False}
    assert agrees(pair, turned, names_places=False) == {"object": True}
    assert agrees(pair, Scene((Thing("dog"), Thing("box")), "beside")) == {"object": False, "layout": True}
    assert agrees(pair, Scene(pair.things, "above"))["layout"] is False


def test_the_nearest_pair_is_the_nearest_of_all_pairs(artwork: Artwork) -> None:
    """Noise makes every pair about equally far; the search by cells still finds the least distance."""
    judge = SceneJudge(artwork)
    pairs = [
        Scene((Thing(first), Thing(second)), layout)
        for one, other in combinations(NOUNS, 2)
        for first, second in ((one, other), (other, one))
        for layout in LAYOUTS
    ]
    drawings = np.stack([np.asarray(artwork.draw(scene), float) for scene in pairs])
    rng = np.random.default_rng(1)
    for _ in range(10):
        image = Image.fromarray(
            np.kron(rng.integers(0, 256, (16, 16, 3)), np.ones((2, 2, 1))).astype(np.uint8)
        )
        halves = drawings.reshape(len(pairs), 16, 2, 16, 2, 3).mean(axis=(2, 4))
        distances = ((halves - np.asarray(image, float)[::2, ::2]) ** 2).sum(axis=(1, 2, 3))
        assert judge.judge([image], "pair") == [pairs[int(distances.argmin())]]

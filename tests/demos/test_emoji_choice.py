"""The captions of emoji, which emoji are chosen, and which may be mirrored."""

from collections import Counter

import pytest

from ldm.demos.emoji_captions import captions_of, takes_article, with_article
from ldm.demos.emoji_choice import is_clear, may_flip
from ldm.demos.emoji_source import Emoji


def an_emoji(name: str, subgroup: str = "food-fruit", group: str = "food-drink", tags: str = "") -> Emoji:
    return Emoji("1F34E", name, tuple(tags.split()), group, subgroup, 1)


# Captions


def test_common_tags_come_first_without_chat_and_repeats() -> None:
    emoji = an_emoji("red apple", tags="apple ripe fruit food lol 143 GB red")
    counts = Counter({"food": 9, "fruit": 5, "lol": 99, "143": 99, "GB": 99})
    assert captions_of(emoji, counts)[2:] == ["red apple, food, fruit", "red apple, food, fruit, ripe"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("apple", "an apple"),
        ("hourglass done", "an hourglass done"),
        ("unicorn", "a unicorn"),
        ("umbrella", "an umbrella"),
        ("one-piece swimsuit", "a one-piece swimsuit"),
        ("x-ray", "an x-ray"),
        ("T-Rex", "a T-Rex"),
    ],
)
def test_the_article_depends_on_the_sound(name: str, expected: str) -> None:
    assert with_article(name) == expected


@pytest.mark.parametrize(
    "name", ["cactus", "octopus", "wine glass", "face with tears of joy", "rhinoceros", "pile of poo"]
)
def test_countable_things_take_an_article(name: str) -> None:
    assert takes_article(an_emoji(name))


@pytest.mark.parametrize(
    "name", ["grapes", "bread", "mount fuji", "person: beard", "slices on bread", "men wrestling"]
)
def test_plurals_substances_and_names_take_none(name: str) -> None:
    assert not takes_article(an_emoji(name))


def test_symbols_take_no_article() -> None:
    assert not takes_article(an_emoji("apple", group="symbols"))


# The choice


@pytest.mark.parametrize(
    ("name", "subgroup", "tags"),
    [
        ("left arrow", "arrow", ""),
        ("flag", "subdivision-flag", "leftwards"),
        ("right-facing fist", "hand-fingers-closed", ""),
        ("left hand", "hands", ""),
        ("boat", "transport-water", "rightwards"),
        ("bar chart", "office", ""),
        ("musical notes", "music", ""),
        ("ATM sign", "transport-sign", ""),
        ("input latin letters", "alphanum", ""),
        ("newspaper", "book-paper", ""),
        ("two-thirty", "time", ""),
        ("taxi", "transport-ground", ""),
    ],
)
def test_images_that_mirroring_makes_wrong(name: str, subgroup: str, tags: str) -> None:
    assert not may_flip(an_emoji(name, subgroup, tags=tags))


@pytest.mark.parametrize("name", ["red apple", "envelope", "bright light", "signal horn"])
def test_images_that_may_be_mirrored(name: str) -> None:
    assert may_flip(an_emoji(name, tags="letter arrow"))


def test_flags_are_never_flipped() -> None:
    assert not may_flip(an_emoji("black flag", "flag", group="flags"))


@pytest.mark.parametrize(
    ("name", "subgroup", "expected"),
    [
        ("red apple", "food-fruit", True),
        ("mango", "food-fruit", False),
        ("grinning face", "face-smiling", True),
        ("smiling face", "face-affection", False),
        ("watch", "time", True),
        ("one o'clock", "time", False),
        ("one-thirty", "time", False),
        ("waving hand", "hand-fingers-open", False),
        ("keycap: 1", "keycap", False),
    ],
)
def test_the_clear_subset(name: str, subgroup: str, expected: bool) -> None:
    assert is_clear(an_emoji(name, subgroup)) is expected

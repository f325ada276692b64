"""Drawing captions, shuffling and dropping them, and captions that forbid mirroring."""

from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ldm.config import validate
from ldm.data.captions import (
    CaptionSettings,
    caption_for,
    directional_words,
    flip_allowed,
    plain_caption,
    possible_captions,
)
from ldm.data.sample import FileImage, Sample
from ldm.errors import UserError


@pytest.mark.parametrize(
    ("caption", "words"),
    [
        ("a red circle to the left of a blue square", ["left"]),
        ("Right arrow curving LEFT, then right", ["right", "left"]),
        (
            "counter-clockwise, anticlockwise and counterclockwise",
            ["clockwise", "anticlockwise", "counterclockwise"],
        ),
        (
            "the left's left-handed, rightmost; south-east, northwestern",
            ["left", "rightmost", "east", "northwestern"],
        ),
        ("raised_left_arm 2left3", ["left"]),
        ("bright light leftover copyright playwright western", ["western"]),
        ("beast, wrestling and a rightful yeast", []),
        ("", []),
    ],
)
def test_directional_words_are_whole_words(caption: str, words: list[str]) -> None:
    assert directional_words(caption) == words


def sample(*captions: str, may_flip: bool | None = None, sample_id: str = "a.png") -> Sample:
    return Sample(sample_id, FileImage(Path("a.png")), captions, may_flip)


def draw(shown: Sample, seed: int = 0, num_epochs: int = 60, **kind: Any) -> list[str]:
    """The captions of a sample in the first epochs, by default without dropout."""
    caption_settings = CaptionSettings(**{"dropout": 0, **kind})
    return [caption_for(shown, caption_settings, seed=seed, epoch=epoch) for epoch in range(num_epochs)]


def test_the_flip_column_takes_precedence_over_the_words() -> None:
    assert flip_allowed(sample("an apple"))
    assert not flip_allowed(sample("an arrow", "a left arrow"))
    assert flip_allowed(sample("a left arrow", may_flip=True))
    assert not flip_allowed(sample("an apple", may_flip=False))


def test_captions_depend_only_on_the_key() -> None:
    shown = sample("a", "b", "c", sample_id="x.png")
    first = draw(shown)
    plain = CaptionSettings(dropout=0)
    assert first == [caption_for(shown, plain, seed=0, epoch=e) for e in reversed(range(60))][::-1]
    assert set(first) == {"a", "b", "c"}
    assert first != draw(shown, seed=1)
    assert first != draw(sample("a", "b", "c", sample_id="y.png"))


def test_the_draws_have_not_changed_since_the_first_models() -> None:
    """Changing the key of a draw would change the captions of every earlier run."""
    shown = sample("a", "b", "c", sample_id="x.png")
    assert "".join(draw(shown, seed=5, num_epochs=12)) == "bccacbcccbbb"
    assert "".join(c or "-" for c in draw(shown, seed=5, num_epochs=12, dropout=0.4)) == "bcca-bcc-bb-"


def test_dropout_has_its_probability_and_does_not_affect_the_choice() -> None:
    shown = [sample("a", "b", sample_id=f"{i}.png") for i in range(100)]
    kept = [caption for one in shown for caption in draw(one, 3, 20)]
    some = [caption for one in shown for caption in draw(one, 3, 20, dropout=0.1)]
    assert 0.07 < some.count("") / len(some) < 0.13
    assert all(s in ("", k) for s, k in zip(some, kept, strict=True))
    assert 0.45 < kept.count("a") / len(kept) < 0.55
    # If one draw were used for both, dropout would favour one caption.
    left = [s for s in some if s]
    assert 0.45 < left.count("a") / len(left) < 0.55
    assert set(draw(shown[0], dropout=1.0)) == {""}


TAGS = "a cat, sitting,black ,, by night"


def test_tags_occur_in_every_order_after_those_that_stay() -> None:
    shown = draw(sample(TAGS), shuffle_tags=True, num_epochs=80)
    orders = {", ".join(("a cat", *rest)) for rest in permutations(("sitting", "black", "by night"))}
    assert set(shown) == orders
    assert shown == draw(sample(TAGS), shuffle_tags=True, num_epochs=80)
    assert shown != draw(sample(TAGS, sample_id="b.png"), shuffle_tags=True, num_epochs=80)
    assert shown != draw(sample(TAGS), seed=1, shuffle_tags=True, num_epochs=80)


def test_how_many_tags_stay_is_a_setting() -> None:
    firsts = {c.split(", ")[0] for c in draw(sample(TAGS), shuffle_tags=True, keep_first=0)}
    assert firsts == {"a cat", "sitting", "black", "by night"}
    assert set(draw(sample(TAGS), shuffle_tags=True, keep_first=9)) == {"a cat, sitting, black, by night"}
    pairs = {tuple(c.split(", ")[:2]) for c in draw(sample(TAGS), shuffle_tags=True, keep_first=2)}
    assert pairs == {("a cat", "sitting")}


def test_tags_may_have_another_separator() -> None:
    shown = draw(sample("a|b, c|d"), shuffle_tags=True, keep_first=0, separator="|")
    assert set(shown) == {"| ".join(order) for order in permutations(("a", "b, c", "d"))}
    assert set(draw(sample("a b"), shuffle_tags=True, keep_first=0, separator=" ")) == {"a b", "b a"}


def test_shuffling_changes_no_other_draw() -> None:
    shown = sample("a", "b, c, d", "")
    kind: dict[str, Any] = {"dropout": 0.3, "num_epochs": 80}
    plain, shuffled = draw(shown, **kind), draw(shown, shuffle_tags=True, keep_first=0, **kind)
    assert [sorted(c.split(", ")) for c in plain] == [sorted(c.split(", ")) for c in shuffled]
    assert plain != shuffled


@pytest.mark.parametrize(
    ("prefix", "suffix", "expected"),
    [
        ("", "", " a cat "),
        ("photo of", "", "photo of a cat"),
        ("sks, ", ", by night", "sks, a cat, by night"),
        ("", "by night ", "a cat by night"),
        ("", ".", "a cat."),
    ],
)
def test_prefix_and_suffix_are_separated_from_the_caption(prefix: str, suffix: str, expected: str) -> None:
    assert set(draw(sample(" a cat "), prefix=prefix, suffix=suffix)) == {expected}


def test_a_dropped_caption_stays_empty_and_one_without_words_does_not() -> None:
    assert set(draw(sample("a"), dropout=0.5, prefix="x", suffix="y")) == {"", "x a y"}
    assert set(draw(sample(""), prefix="x", suffix="y")) == {"x y"}
    assert set(draw(sample(""), suffix=", y")) == {", y"}
    assert set(draw(sample("a, b, c"), shuffle_tags=True, keep_first=0, prefix="x,", suffix=", y")) == {
        f"x, {', '.join(order)}, y" for order in permutations("abc")
    }


def test_the_possible_captions_are_listed_unless_they_are_many() -> None:
    assert possible_captions(sample("b", "a", "b"), CaptionSettings()) == ["b", "a", ""]
    assert possible_captions(sample("a"), CaptionSettings(dropout=0, prefix="x")) == ["x a"]
    assert possible_captions(sample("a"), CaptionSettings(dropout=1)) == [""]
    shuffled = CaptionSettings(dropout=0, shuffle_tags=True)
    assert possible_captions(sample("a, b, c", "d"), shuffled) == ["a, b, c", "a, c, b", "d"]
    assert len(possible_captions(sample("a, b, c, d, e"), shuffled) or []) == 24
    assert possible_captions(sample("a, b, c, d, e", "f"), shuffled) is None
    assert possible_captions(sample("a, b, c, d, e, f"), shuffled) is None


def test_the_plain_caption_is_the_first_with_prefix_and_suffix() -> None:
    assert plain_caption(sample("b", "a"), CaptionSettings(dropout=1, prefix="x", suffix="y")) == "x b y"
    many = CaptionSettings(shuffle_tags=True, prefix="x")
    assert possible_captions(sample("a,b,c,d,e,f"), many) is None
    assert plain_caption(sample("a,b,c,d,e,f"), many) == "x a, b, c, d, e, f"
    for kind in (CaptionSettings(dropout=0), CaptionSettings(dropout=0, shuffle_tags=True)):
        shown = sample(TAGS, "other")
        assert plain_caption(shown, kind) == (possible_captions(shown, kind) or [])[0]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.lists(st.text("ab, ;", max_size=8), min_size=1, max_size=3),
    st.builds(
        CaptionSettings,
        dropout=st.sampled_from([0, 0.4, 1]),
        shuffle_tags=st.just(True),
        keep_first=st.integers(0, 2),
        separator=st.sampled_from([",", ";", " "]),
        prefix=st.sampled_from(["", "p "]),
        suffix=st.sampled_from(["", ", s"]),
    ),
)
def test_every_drawn_caption_is_one_of_the_possible_ones(captions: list[str], kind: CaptionSettings) -> None:
    shown = sample(*captions)
    possible = possible_captions(shown, kind)
    if possible is not None:
        assert {caption_for(shown, kind, seed=0, epoch=epoch) for epoch in range(15)} <= set(possible)
        assert len(possible) == len(set(possible))


@pytest.mark.parametrize(
    ("given_settings", "message"),
    [
        ({"keep_first": 2}, "keep_first = 2 has no effect: set shuffle_tags=true or leave it out"),
        ({"separator": ";"}, "separator = ';' has no effect: set shuffle_tags=true"),
        ({"shuffle_tags": True, "separator": ""}, "separator = ''"),
        ({"dropout": 1.5}, "dropout = 1.5"),
        ({"shuffle": True}, "unknown setting 'shuffle': did you mean 'shuffle_tags'"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(
    given_settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        validate(CaptionSettings, given_settings)


def test_settings_load_back_equal() -> None:
    for kind in (CaptionSettings(), CaptionSettings(shuffle_tags=True, keep_first=0, separator=";")):
        assert validate(CaptionSettings, kind.model_dump()) == kind

"""Which caption a sample is shown with, and which captions forbid mirroring."""

from pathlib import Path

import pytest

from ldm.data.captions import caption_for, directional_words, flip_allowed
from ldm.data.sample import FileImage, Sample


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


def sample(*captions: str, may_flip: bool | None = None) -> Sample:
    return Sample("a.png", FileImage(Path("a.png")), captions, may_flip)


def test_the_folder_decides_on_flips_before_the_words_do() -> None:
    assert flip_allowed(sample("an apple"))
    assert not flip_allowed(sample("an arrow", "a left arrow"))
    assert flip_allowed(sample("a left arrow", may_flip=True))
    assert not flip_allowed(sample("an apple", may_flip=False))


def test_captions_are_drawn_from_the_key_alone() -> None:
    captions = ("a", "b", "c")

    def draw(seed: int, epoch: int, sample_id: str, dropout: float = 0.0) -> str:
        return caption_for(captions, seed=seed, epoch=epoch, sample_id=sample_id, dropout=dropout)

    first = [draw(0, epoch, "x.png") for epoch in range(60)]
    assert first == [draw(0, epoch, "x.png") for epoch in reversed(range(60))][::-1]
    assert set(first) == set(captions)
    assert first != [draw(1, epoch, "x.png") for epoch in range(60)]
    assert first != [draw(0, epoch, "y.png") for epoch in range(60)]


def test_dropout_has_its_share_and_leaves_the_choice_alone() -> None:
    keys = [{"seed": 3, "epoch": epoch, "sample_id": f"{i}.png"} for epoch in range(20) for i in range(100)]
    kept = [caption_for(("a", "b"), dropout=0.0, **key) for key in keys]
    some = [caption_for(("a", "b"), dropout=0.1, **key) for key in keys]
    assert 0.07 < some.count("") / len(keys) < 0.13
    assert all(s in ("", k) for s, k in zip(some, kept, strict=True))
    assert 0.45 < kept.count("a") / len(keys) < 0.55
    # Were one draw used for both, dropping would favour one caption.
    left = [s for s in some if s]
    assert 0.45 < left.count("a") / len(left) < 0.55
    assert {caption_for(("a",), dropout=1.0, **key) for key in keys[:50]} == {""}

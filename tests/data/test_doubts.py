"""What may be wrong with data that can be used: rare words, contradicting captions, odd shapes and sizes."""

import random
from dataclasses import replace
from pathlib import Path

from ldm.cli.data_text import summary_lines
from ldm.data.report.doubts import contradictions, find_doubts, ids_by_word, outliers, rare_words, words_of
from ldm.data.report.report import make_report
from ldm.data.sample import FileImage, ImageInfo, Sample
from ldm.data.sources.reading import Reading


def sample(sample_id: str, *captions: str) -> Sample:
    return Sample(sample_id, FileImage(Path(f"{sample_id}.png")), captions)


def info(width: int = 100, height: int = 80, content: str = "") -> ImageInfo:
    return ImageInfo(content, width, height, perceptual_hash=0)


def many(number: int = 30) -> dict[str, Sample]:
    return {f"s{i:02d}": sample(f"s{i:02d}", "a red apple on a table") for i in range(number)}


def test_words_in_too_few_images_are_listed_with_them() -> None:
    samples = many()
    samples["s03"] = sample("s03", "A red Pear", "an apple and a pear 7")
    samples["s04"] = sample("s04", "a pear and a quince")
    found = rare_words(ids_by_word(list(samples.values())))
    assert [(each.word, each.sample_ids) for each in found] == [
        ("and", ["s03", "s04"]), ("pear", ["s03", "s04"]), ("quince", ["s04"]),
    ]  # fmt: skip
    assert words_of("It's 3 Äpfel_x") == {"Äpfel".lower()}


def test_equal_images_contradict_each_other_only_if_both_captions_say_something_else() -> None:
    captions = {
        "a": ("a red apple",), "b": ("a green apple",), "c": ("a large red apple on a table",),
        "d": ("fruit", "an apple"),
    }  # fmt: skip
    samples = [sample(name, *texts) for name, texts in captions.items()]
    assert contradictions(samples, [["a", "b"]]) == [["a", "b"]]
    assert (
        contradictions(samples, [["a", "c"], ["a", "d"]]) == []
    )  # more words, or another caption, are no contradiction
    assert contradictions(samples, [["a", "c", "b"]]) == [["a", "c", "b"]]


def test_many_equal_images_are_compared_like_a_few() -> None:
    """Each with each would take minutes, so the result is that of the definition by another way."""
    draw = random.Random(0)
    outcomes = set()
    for number in range(300):
        texts = [
            " ".join(word for word in ("red", "large", "apple") if draw.random() < 0.7) or "fruit"
            for _ in range(2 + number % 3)
        ]
        words = [words_of(text) for text in texts]
        samples = [sample(str(place), text) for place, text in enumerate(texts)]
        found = contradictions(samples, [[each.sample_id for each in samples]]) != []
        assert found is any(not (a <= b or b <= a) for a in words for b in words)
        outcomes.add(found)
    assert outcomes == {True, False}
    letters = [chr(ord("a") + number // 26) + chr(ord("a") + number % 26) + "x" for number in range(60)]
    many = [sample(str(place), " ".join(letters[: 1 + place % 60])) for place in range(6_000)]
    group = [each.sample_id for each in many]
    assert contradictions(many, [group]) == []
    assert contradictions([*many, sample("other", "pear")], [[*group, "other"]]) == [[*group, "other"]]


def test_only_what_lies_far_from_most_is_odd() -> None:
    values = {f"s{i}": 0.1 * (i % 5) for i in range(40)}
    assert outliers({**values, "odd": 5.0, "low": -3.0}, 0.5) == ["low", "odd"]
    assert outliers({**values, "near": 0.9}, 1.0) == []
    assert outliers({"a": 1.0, "b": 1.0, "c": 1.4}, 0.5) == []


def test_the_check_says_what_it_doubts() -> None:
    samples, facts = many(), {f"s{i:02d}": info(content=f"{i}") for i in range(30)}
    facts |= {"s00": info(100, 300, "0"), "s01": info(1000, 800, "1"), "s02": info(content="3")}
    samples["s02"] = replace(samples["s02"], captions=("a green quince",))
    reading = Reading(list(samples.values()), [])
    report = make_report(reading, facts)
    assert report.doubts.odd_aspects == ["s00"] and report.doubts.odd_sizes == ["s01"]
    assert report.doubts.contradictions == [["s02", "s03"]]
    text = "\n".join(summary_lines("data", report, reading, {}))
    assert "too few to be learned: 2 of 5 (green, quince)" in text
    assert "equal images with captions that contradict each other: s02, s03" in text
    assert "much wider or taller than most: 1 image (s00)" in text
    assert "much larger or smaller than most: 1 image (s01)" in text


def test_a_small_data_set_is_not_doubted() -> None:
    samples = {"a": sample("a", "one"), "b": sample("b", "two")}
    facts = {"a": info(10, 1000), "b": info(1000, 10)}
    found = find_doubts(list(samples.values()), facts, [["a", "b"]])
    assert found.contradictions == [["a", "b"]] and not found.rare_words and not found.odd_aspects

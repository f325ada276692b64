"""The grammar of prompts: weights, changes during sampling, chunks and compositions. Every text can be read."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ldm.models.prompt_grammar import (
    LARGEST_WEIGHT,
    ComposedPrompt,
    composed_prompts,
    prompt_at_step,
    weighted_texts,
)

FAST = settings(max_examples=150, deadline=None, derandomize=True)
MARKS = st.text(alphabet="()[]:|\\.5-a BREAKND", max_size=40)
PLAIN = st.text(alphabet="ab Ñ,.'\"-{}<>\n\u2028🍎7", max_size=30)


def runs(prompt: str) -> list[tuple[str, float]]:
    """The text of a prompt in runs of equal weight."""
    found: list[tuple[str, float]] = []
    for part in weighted_texts(prompt):
        for letter, weight in zip(part.text, part.weights, strict=True):
            if found and found[-1][1] == weight:
                found[-1] = (found[-1][0] + letter, weight)
            else:
                found.append((letter, weight))
    return found


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a red apple", [("a red apple", 1.0)]),
        ("a (red) apple", [("a ", 1.0), ("red", 1.1), (" apple", 1.0)]),
        ("a [red] apple", [("a ", 1.0), ("red", 1 / 1.1), (" apple", 1.0)]),
        ("a (red:1.3) apple", [("a ", 1.0), ("red", 1.3), (" apple", 1.0)]),
        ("(a: .5 )", [("a", 0.5)]),
        ("(a:-1)", [("a", -1.0)]),
        ("((a))", [("a", 1.1 * 1.1)]),
        ("(a (b:2):0.5)", [("a ", 0.5), ("b", 1.0)]),
        (r"a \(red\) \[apple\] \\", [(r"a (red) [apple] " + "\\", 1.0)]),
        (r"(a \(b\):1.5)", [("a (b)", 1.5)]),
        ("a time 10:30", [("a time 10:30", 1.0)]),
        ("a :) b", [("a :) b", 1.0)]),
        ("a] b", [("a] b", 1.0)]),
        ("a (b", [("a ", 1.0), ("b", 1.1)]),
        ("a\\", [("a\\", 1.0)]),
        ("(a:1.3", [("a:1.3", 1.1)]),
        ("(a:x)", [("a:x", 1.1)]),
        ("", []),
    ],
)
def test_weights(prompt: str, expected: list[tuple[str, float]]) -> None:
    assert runs(prompt) == expected


def test_break_separates_parts() -> None:
    assert [part.text.strip() for part in weighted_texts("a BREAK (b BREAK\nc:2) BREAKFAST")] == [
        "a",
        "b",
        "c BREAKFAST",
    ]
    assert [set(part.weights) for part in weighted_texts("a BREAK (b BREAK c:2)")] == [
        {1.0},
        {1.0, 2.0},
        {2.0},
    ]


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("[a:b:0.5]", "aabb"),
        ("[a:b:3]", "aaab"),
        ("[b:0.25]", " bbb"),
        ("[a::0.25]", "a   "),
        ("[a|b]", "abab"),
        ("[a|b|]", "ab a"),
        ("[[a|b]:c:2]", "abcc"),
        ("[a:[b|c]:2]", "aabc"),
        ("[a:b:-1]", "bbbb"),
        ("[a:b:1.0]", "aaaa"),
    ],
)
def test_changes_during_sampling(prompt: str, expected: str) -> None:
    assert [prompt_at_step(prompt, index, 4) for index in range(4)] == [each.strip() for each in expected]


@pytest.mark.parametrize(
    "prompt",
    [
        "[a]",
        "(a:1.3)",
        "[a:b]",
        "[a:b:c:0.5]",
        "[a",
        "a]",
        r"\[a:b:0.5\]",
        "a | b : 0.5",
        "(a|b)",
        "[a (b:0.5]",
    ],
)
def test_what_is_no_change_stays_as_written(prompt: str) -> None:
    assert {prompt_at_step(prompt, index, 4) for index in range(4)} == {prompt}


def test_a_colon_in_round_brackets_belongs_to_the_weight() -> None:
    assert prompt_at_step("[(a:1.3) x:b:0.5]", 0, 4) == "(a:1.3) x"


def test_compositions() -> None:
    assert composed_prompts("a :0.7") == [ComposedPrompt("a :0.7")]  # without AND it is text
    assert composed_prompts("a AND b :0.7") == [ComposedPrompt("a"), ComposedPrompt("b", 0.7)]
    assert composed_prompts("a:2 AND (b:1.2) AND c: -1") == [
        ComposedPrompt("a", 2.0),
        ComposedPrompt("(b:1.2)"),
        ComposedPrompt("c", -1.0),
    ]
    assert composed_prompts("SAND AND a AND ") == [ComposedPrompt("SAND"), ComposedPrompt("a")]
    assert composed_prompts(" AND ") == [ComposedPrompt("")]


@FAST
@given(MARKS)
def test_every_text_can_be_read(prompt: str) -> None:
    for part in composed_prompts(prompt):
        for index in range(3):
            for each in weighted_texts(prompt_at_step(part.text, index, 3)):
                assert len(each.text) == len(each.weights)
                assert all(abs(weight) <= LARGEST_WEIGHT for weight in each.weights)


@FAST
@given(PLAIN)
def test_text_without_marks_is_read_as_it_is(prompt: str) -> None:
    assert composed_prompts(prompt) == [ComposedPrompt(prompt)]
    assert prompt_at_step(prompt, 0, 3) == prompt
    assert [each.text for each in weighted_texts(prompt)] == [prompt]
    assert set(weighted_texts(prompt)[0].weights) <= {1.0}


@FAST
@given(st.one_of(MARKS, PLAIN))
def test_escaped_text_is_itself(text: str) -> None:
    escaped = "".join(f"\\{letter}" if letter in "()[]:|\\" else letter for letter in text)
    if "BREAK" not in text:
        assert "".join(each.text for each in weighted_texts(prompt_at_step(escaped, 1, 3))) == text


def test_a_thousand_brackets_are_read() -> None:
    deep = "(" * 3000 + "a" + ")" * 3000
    assert runs(deep) == [("a", LARGEST_WEIGHT)]
    assert prompt_at_step("[" * 3000 + "a" + ":0.5]" * 3000, 0, 2) == ""

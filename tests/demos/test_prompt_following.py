"""Scores of prompt following: the interval against published values, the shares against known mistakes."""

import json

import pytest

from ldm.demos.prompt_following import score_prompts
from ldm.demos.shapes import Scene, Thing, scene_for
from ldm.demos.shapes_drawing import draw
from ldm.errors import UserError
from ldm.evaluation.share import Share, wilson_interval


@pytest.mark.parametrize(
    ("num_right", "num_judged", "low", "high"),
    [  # R. G. Newcombe, Statistics in Medicine 17 (1998) 857-872, Table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_the_interval_is_wilsons(num_right: int, num_judged: int, low: float, high: float) -> None:
    assert wilson_interval(num_right, num_judged) == pytest.approx((low, high), abs=6e-5)
    mirrored = wilson_interval(num_judged - num_right, num_judged)
    assert mirrored == pytest.approx((1 - high, 1 - low), abs=6e-5)


def test_the_interval_narrows_with_less_confidence_and_refuses_nonsense() -> None:
    wide, narrow = wilson_interval(8, 10), wilson_interval(8, 10, confidence=0.5)
    assert wide[0] < narrow[0] < 0.8 < narrow[1] < wide[1]
    for num_right, num_judged in ((0, 0), (3, 2), (-1, 2)):
        with pytest.raises(ValueError, match="no share"):
            wilson_interval(num_right, num_judged)


def test_each_mistake_lowers_its_own_attribute() -> None:
    red, blue = Thing("circle", "red", "small"), Thing("square", "blue", "large")
    right = Scene((red, blue), "above")
    shown = [
        right,
        Scene((red, blue), "below"),
        Scene((Thing("star", "red", "small"), blue), "above"),
        Scene((red, Thing("square", "green", "large")), "above"),
        Scene((red, Thing("square", "blue", "small")), "above"),
        Scene((red, blue), "above", "grey"),
    ]
    score = score_prompts([right.caption] * len(shown), [draw(scene, 48, "x") for scene in shown])
    six, five = Share(6, 6), Share(5, 6)
    assert score.shares == {
        "shape": five,
        "colour": five,
        "size": five,
        "count": six,
        "relation": five,
        "background": five,
        "all": Share(1, 6),
    }


def test_attributes_are_scored_where_prompts_have_them() -> None:
    scenes = [scene_for(3, i) for i in range(20)]
    num_related = sum(scene.relation is not None for scene in scenes)
    score = score_prompts(scenes, [draw(scene, 64, 3, i) for i, scene in enumerate(scenes)])
    assert 0 < num_related < 20
    assert score.shares["relation"] == Share(num_related, num_related)
    assert score.shares["all"] == Share(20, 20)
    lone = Scene((Thing("star", "pink", "large"),))
    assert "relation" not in score_prompts([lone], [draw(lone, 32)]).shares


def test_a_score_reads_as_json_and_as_a_line() -> None:
    lone = Scene((Thing("star", "pink", "large"),))
    score = score_prompts([lone, lone], [draw(lone, 32), draw(Scene(lone.things * 2), 32)])
    record = json.loads(json.dumps(score.to_dict()))
    assert record["count"] == {
        "share": 0.5,
        "low": pytest.approx(0.0945, abs=1e-4),
        "high": pytest.approx(0.9055, abs=1e-4),
        "num_right": 1,
        "num_judged": 2,
    }
    assert str(score).startswith("shape 1.000 [0.342, 1.000] of 2; colour 1.000")
    assert "\n" not in str(score)


def test_prompts_and_images_must_pair_up() -> None:
    lone = Scene((Thing("star", "pink", "large"),))
    with pytest.raises(ValueError, match="no prompts"):
        score_prompts([], [])
    with pytest.raises(ValueError, match="shorter"):
        score_prompts([lone, lone], [draw(lone, 32)])
    with pytest.raises(UserError, match="no caption of a drawn scene"):
        score_prompts(["a red apple"], [draw(lone, 32)])

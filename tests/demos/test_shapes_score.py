"""Scores of prompt following: each known mistake lowers its own attribute."""

import json

import pytest

from ldm.demos.shapes import Scene, Thing, scene_for
from ldm.demos.shapes_drawing import draw
from ldm.demos.shapes_score import score_prompts
from ldm.errors import UserError
from ldm.evaluation.metrics import Share


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
    with pytest.raises(UserError, match="not a caption of a drawn scene"):
        score_prompts(["a red apple"], [draw(lone, 32)])

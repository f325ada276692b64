"""Scores of edits and inpainting: shares by kind with exact intervals, beside what the numbers can mean."""

import json
from pathlib import Path

import pytest

from ldm.demos.shapes_tasks_score import edit_case, hole_case, score_task
from ldm.demos.task_cases import error_elsewhere, shares
from ldm.errors import UserError
from ldm.export.card.run_record import RunRecord
from ldm.export.card.training_facts import measurements_of
from ldm.pipeline.pipeline import Pipeline, load_pipeline


@pytest.fixture(scope="module")
def embedded() -> Pipeline:
    return load_pipeline("emoji", device="cpu")


def test_shares_count_by_kind_and_the_intervals_are_exact() -> None:
    cases = [edit_case(index, 32, held_out=False) for index in range(8)]
    images = [case.wanted for case in cases[:4]] + [case.image for case in cases[4:]]
    found = shares(cases, images)
    assert found["all"]["all"]["num_right"] == 4 and found["all"]["all"]["num_judged"] == 8
    assert (found["all"]["all"]["low"], found["all"]["all"]["high"]) == pytest.approx(
        (0.157, 0.843), abs=1e-3
    )
    assert {kind: share["all"]["num_judged"] for kind, share in found.items()} == {
        "all": 8,
        "recolour": 2,
        "reshape": 2,
        "remove": 2,
        "move": 2,
    }
    assert found["all"]["kept"]["num_right"] == 7  # the thing not removed is one too many


def test_the_error_elsewhere_leaves_out_what_should_change() -> None:
    cases = [edit_case(index, 32, held_out=False) for index in range(4)]
    assert error_elsewhere(cases, [case.wanted for case in cases]) == 0
    assert error_elsewhere(cases, [case.image for case in cases]) == 0
    darker = [case.wanted.point([max(level - 3, 0) for level in range(256)] * 3) for case in cases]
    assert 1 < error_elsewhere(cases, darker) <= 3


def test_zero_shot_inpainting_is_scored(embedded: Pipeline, tmp_path: Path) -> None:
    dest = tmp_path / "score"
    report = score_task(embedded, "blended-inpaint", dest, num_cases=4, settings={"num_inference_steps": 2})
    assert json.loads((dest / "report.json").read_text()) == report
    assert all((dest / f"{name}.png").is_file() for name in ("held-out", "seen", "null"))
    for part in ("held_out", "seen", "null", "ceiling"):
        assert report["scores"][part]["all"]["untouched"]["share"] == 1
        assert report["scores"][part]["all"]["all"]["num_judged"] == 4
    assert report["scores"]["ceiling"]["all"]["restored"]["share"] == 1
    assert report["error_elsewhere"] == {"model": 0, "ceiling": 0}
    assert "unedited" not in report["scores"]
    run = RunRecord("run", {}, [], None, None, "average", [report])
    told = [(one.what, one.command) for one in measurements_of(run.reports, run)]
    assert len(told) == 2 and "combinations held out of training" in told[1][0]
    assert "scripts/score_tasks.py blended-inpaint --model MODEL --output DIR --size-px 32" in told[1][1]


def test_the_limits_of_edits_need_no_model_that_edits(embedded: Pipeline, tmp_path: Path) -> None:
    report = score_task(embedded, "edit", tmp_path / "score", num_cases=8, limits_only=True)
    assert set(report["scores"]) == {"ceiling", "unedited"} and set(report["error_elsewhere"]) == {"ceiling"}
    assert report["scores"]["ceiling"]["all"]["all"]["num_right"] >= 7
    assert report["scores"]["unedited"]["all"]["changed"]["num_right"] == 0
    assert 0 < report["error_elsewhere"]["ceiling"] < 12
    assert [path.name for path in (tmp_path / "score").iterdir()] == ["report.json"]
    assert measurements_of([report], None) == []


def test_a_null_needs_two_cases(embedded: Pipeline, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="num_cases is 1"):
        score_task(embedded, "blended-inpaint", tmp_path / "score", num_cases=1)


@pytest.mark.parametrize("task", ["edit", "inpaint", "upscale"])
def test_a_model_for_another_task_is_refused_and_nothing_is_written(
    embedded: Pipeline, task: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=task):
        score_task(embedded, task, tmp_path / "score", num_cases=2, settings={"num_inference_steps": 1})
    assert not (tmp_path / "score").exists()


def test_cases_are_the_same_every_time() -> None:
    for case_for in (edit_case, hole_case):
        one, two = (case_for(3, 32, held_out=True) for _ in range(2))
        assert (one.prompt, one.image.tobytes(), one.wanted.tobytes()) == (
            two.prompt,
            two.image.tobytes(),
            two.wanted.tobytes(),
        )

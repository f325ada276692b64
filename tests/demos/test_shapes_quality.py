"""The quality of restored, enlarged and controlled drawings: measures, simpler methods, gains with paired intervals."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ldm.demos.shapes_quality import (
    MEASURED_TASKS,
    STRENGTHS,
    cases_for,
    enlarged,
    layout_f1,
    likeness,
    median_filtered,
)
from ldm.demos.shapes_quality_score import make_images, measure_task
from ldm.demos.shapes_tasks_report import lines_of
from ldm.errors import UserError
from ldm.export.card.training_facts import measurements_of
from ldm.models.control.networks import ControlNetwork
from ldm.pipeline.pipeline import Pipeline
from tests.support.tiny_controls import make_controlnet
from tests.support.tiny_lpips import install_lpips
from tests.support.tiny_models import make_sd1
from tests.support.tiny_tasks import make_labelled

FEW: dict[str, Any] = {"num_inference_steps": 2, "guidance_scale": 1.0, "max_prompt_chunks": 3}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Pipeline]:
    folder = tmp_path_factory.mktemp("models")
    base = make_sd1(folder)
    base.controls["segmentation"] = ControlNetwork("segmentation", "net", "0" * 64, make_controlnet(base))
    labelled = {
        task: Pipeline(make_labelled(folder / task, task, num_levels=3)) for task in ("restore", "upscale")
    }
    return {"control": Pipeline(base), **labelled}


@pytest.mark.parametrize("task", MEASURED_TASKS)
def test_a_model_is_measured_beside_simpler_methods(
    models: dict[str, Pipeline], task: str, tmp_path: Path
) -> None:
    report = measure_task(models[task], task, tmp_path / "score", num_cases=8, settings=FEW)
    assert json.loads((tmp_path / "score/report.json").read_text()) == report
    assert {path.name for path in (tmp_path / "score").iterdir()} == {
        "report.json",
        "held-out.png",
        "seen.png",
    }
    simpler = {
        "control": {"null", "uncontrolled"},
        "restore": {"given", "median", "round_trip"},
        "upscale": {"bicubic", "round_trip"},
    }[task]
    others = {"held_out", "seen", "ceiling"} | ({"unprompted"} if task == "control" else set())
    assert set(report["quality"]) == simpler | others and set(report["gains"]) == simpler
    for name, kinds in report["gains"].items():
        for measure, gain in kinds["all"].items():
            model, other = (report["quality"][part]["all"][measure]["mean"] for part in ("held_out", name))
            assert gain["mean"] == pytest.approx(model - other, abs=1e-6) and gain["num_images"] == 8
            assert gain["low"] <= gain["mean"] <= gain["high"]
    told = measurements_of([report], None)
    assert len(told) == sum(len(kinds["all"]) for kinds in report["gains"].values())
    assert f"scripts/score_tasks.py {task} --model MODEL" in told[0].command


def test_lpips_is_measured_if_asked_and_a_gain_means_nearer(
    models: dict[str, Pipeline], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = install_lpips(tmp_path / "site", monkeypatch)
    how: dict[str, Any] = {"num_cases": 4, "settings": FEW, "lpips": True}
    report = measure_task(models["upscale"], "upscale", tmp_path / "score", **how)
    quality = {part: kinds["all"]["lpips"]["mean"] for part, kinds in report["quality"].items()}
    assert report["lpips"]["hash"] == found and min(quality.values()) > 0
    gain = report["gains"]["bicubic"]["all"]["lpips"]["mean"]
    assert gain == pytest.approx(quality["bicubic"] - quality["held_out"], abs=1e-6) and abs(gain) > 1e-4
    for task, size_px, said in (("control", 32, "no image to compare with"), ("upscale", 16, "at least 31")):
        with pytest.raises(UserError, match=said):
            measure_task(models[task], task, tmp_path / "no", size_px=size_px, **how)
    assert not (tmp_path / "no").exists()


def test_the_limits_need_no_model_for_the_task(models: dict[str, Pipeline], tmp_path: Path) -> None:
    for task in MEASURED_TASKS:
        report = measure_task(models["control"], task, tmp_path / task, num_cases=4, limits_only=True)
        assert "ceiling" in report["quality"] and "gains" not in report
        assert measurements_of([report], None) == []


def test_every_damaged_image_is_restored_with_its_own_strength(models: dict[str, Pipeline]) -> None:
    """The images are made strength by strength and come back in the order of the cases."""
    cases = cases_for("restore", "seen", 16, 32)
    assert {case.strength for case in cases} == set(STRENGTHS[:3])
    together = make_images(models["restore"], "restore", cases, FEW)
    for index in (0, 8, 15):
        case = cases[index]
        alone = models["restore"].generate(
            case.prompt, image=case.given, seed=index, restore=case.strength, **FEW
        )
        difference = np.asarray(alone.images[0], int) - np.asarray(together[index], int)
        assert np.abs(difference).max() <= 1
        other = models["restore"].generate(case.prompt, image=case.given, seed=index, restore=1.0, **FEW)
        assert other.images[0] != alone.images[0]


def test_the_cases_are_right_by_their_measures() -> None:
    for task in MEASURED_TASKS:
        cases = cases_for(task, "held_out", 8, 32)
        assert [case.given.tobytes() for case in cases] == [
            case.given.tobytes() for case in cases_for(task, "held_out", 8, 32)
        ]
        wanted = [case.wanted for case in cases]
        assert min(likeness(cases, wanted)["psnr"]) > 100
        assert min(likeness(cases, wanted)["ssim"]) == pytest.approx(1)
    for case in cases_for("control", "held_out", 8, 32):
        assert layout_f1(case.wanted, case.given) > 0.97
        assert layout_f1(Image.new("RGB", (32, 32), "white"), case.given) == 0
        assert layout_f1(case.wanted.transpose(Image.Transpose.FLIP_LEFT_RIGHT), case.given) < 0.9


def test_f1_of_a_known_overlap() -> None:
    image, hint = Image.new("RGB", (32, 32), "white"), Image.new("L", (32, 32))
    image.paste((220, 30, 40), (4, 4, 14, 14))
    hint.paste(255, (4, 9, 14, 19))
    assert layout_f1(image, hint) == pytest.approx(0.5)
    assert layout_f1(Image.new("RGB", (32, 32), "white"), Image.new("L", (32, 32))) == 1


def test_simpler_methods_help_and_have_the_size_of_the_image_wanted() -> None:
    cases = cases_for("upscale", "seen", 8, 32)
    assert cases[0].given.size == (8, 8) and {image.size for image in enlarged(cases)} == {(32, 32)}
    noisy = [case for case in cases_for("restore", "seen", 28, 32) if case.kind == "gaussian_noise"]
    filtered, given = (
        np.mean(likeness(noisy, images)["psnr"])
        for images in (median_filtered(noisy), [case.given for case in noisy])
    )
    assert filtered > given + 1


def test_a_task_that_is_not_the_models_is_refused_and_nothing_is_written(
    models: dict[str, Pipeline], tmp_path: Path
) -> None:
    for model, task in (
        ("restore", "upscale"),
        ("control", "restore"),
        ("upscale", "control"),
        ("control", "edit"),
    ):
        with pytest.raises(UserError):
            measure_task(models[model], task, tmp_path / "score", num_cases=2, settings=FEW)
        assert not (tmp_path / "score").exists()
    with pytest.raises(UserError, match="num_cases is 1"):
        measure_task(models["control"], "control", tmp_path / "score", num_cases=1)


def test_the_report_is_told_in_lines(models: dict[str, Pipeline], tmp_path: Path) -> None:
    report = measure_task(models["control"], "control", tmp_path / "score", num_cases=2, limits_only=True)
    lines = lines_of(report)
    assert lines[0].startswith("ceiling") and "f1 0." in lines[0]
    assert lines[-1].startswith("as captioned, ceiling: ") and len(lines) >= 3

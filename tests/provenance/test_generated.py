"""Marks, watermarks and credentials of images that a pipeline makes."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ldm.errors import UserError
from ldm.generation.finished import finished_images
from ldm.generation.job import GenerationJob, run_rank
from ldm.generation.model_options import ModelOptions
from ldm.generation.output import Target
from ldm.generation.signing import Signing, read_signing
from ldm.io.image_metadata import ImageFormat, read_metadata
from ldm.models.generation_settings import GenerationSettings
from ldm.pipeline.batches import Prompt, list_images
from ldm.pipeline.input_images import read_inputs
from ldm.pipeline.pipeline import Pipeline
from ldm.pipeline.record import read_record
from ldm.provenance.image_report import provenance_of
from ldm.provenance.marks import EDITED, MADE, source_type_in
from ldm.provenance.signing_identity import ROOT
from ldm.provenance.watermark import detect, payload_of
from tests.support.signatures import identity, told, with_a_changed_pixel
from tests.support.tiny_generate import generate, save_model_of_large_images
from tests.support.tiny_images import photo

pytestmark = pytest.mark.filterwarnings("ignore:.* pixels are far from this model's own")
FAST = {"num_inference_steps": 1, "guidance_scale": 1.0, "seed": 3}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model_of_large_images(tmp_path_factory.mktemp("model"))


def job(model: Path, target: Target, *prompts: Prompt) -> GenerationJob:
    return GenerationJob(tuple(list_images(prompts)), target, ModelOptions(model=str(model), device="cpu"))


def prompt(**more: object) -> Prompt:
    return Prompt("a red apple", GenerationSettings(**{**FAST, "height": 64, "width": 64, **more}))


def made(model: Path, target: Target, *prompts: Prompt) -> Iterator[Path]:
    return run_rank(job(model, target, *prompts))


def test_a_watermark_is_in_the_image_and_in_its_record(model: Path, tmp_path: Path) -> None:
    (path,) = made(model, Target(tmp_path / "a"), prompt(height=256, width=256, watermark=True))
    record = read_record(path)
    assert record.settings.watermark
    with Image.open(path) as image:
        assert detect(image, search=False).payload == payload_of(record.to_json())
    assert "as its record says" in provenance_of(path).line()
    (plain,) = made(model, Target(tmp_path / "b"), prompt(height=256, width=256))
    assert "watermark" not in json.loads(read_metadata(plain).texts["ldm"])
    with Image.open(path) as image, Image.open(plain) as other:
        assert 0 < np.abs(np.asarray(image, int) - np.asarray(other, int)).mean() < 12


@pytest.mark.parametrize("file_format", ["png", "jpeg", "webp"])
def test_the_command_marks_signs_and_reproduces(
    model: Path, tmp_path: Path, file_format: ImageFormat, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything at once: made by `ldm generate`, read by `ldm provenance`, made again, tampered with."""
    pytest.importorskip("c2pa")
    monkeypatch.setenv("LDM_IDENTITY_DIR", str(tmp_path / "alice"))
    identity(tmp_path / "alice", "Alice")
    given = ("--model", model, "--format", file_format, "--sign", "--output")
    quick = ("--num-inference-steps", 1, "--guidance-scale", 1)
    generate("a red apple", *quick, "--seed", 3, "--watermark", *given, tmp_path / "made")
    (path,) = (tmp_path / "made").iterdir()
    record = read_record(path)
    ids = payload_of(record.to_json())
    said = f"signed by Alice; made by large (weights {str(record.weights_hash)[:10]}, seed 3); watermarked"
    ids_said = f"(model {ids.model:04x}, image {ids.image:04x}), as its record says"
    assert told(path) == (0, f"{path}: {said} {ids_said}\n")
    assert source_type_in(read_metadata(path)) == MADE
    generate("--reproduce", path, *given, tmp_path / "again")
    again = tmp_path / "again" / path.name
    assert read_record(again) == record and told(again)[1] == f"{again}: {said} {ids_said}\n"
    with Image.open(path) as first, Image.open(again) as second:
        assert first.tobytes() == second.tobytes()
    path.write_bytes(with_a_changed_pixel(path.read_bytes(), file_format))
    code, line = told(path)
    assert code == 1 and ": TAMPERED: changed since Alice signed it" in line


def test_small_images_are_refused_before_any_work(model: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a watermark needs 256 x 256 pixels, and the image has 64 x 64"):
        list(made(model, Target(tmp_path), prompt(watermark=True)))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("file_format", ["jpeg", "webp"])
def test_other_formats_are_resumed_by_pixels_and_record(
    model: Path, tmp_path: Path, file_format: str
) -> None:
    target = Target(tmp_path, file_format=file_format, resume=True)  # type: ignore[arg-type]
    (path,) = made(model, target, prompt())
    assert list(made(model, target, prompt())) == [], "it is kept"
    data = path.read_bytes()
    place = data.index({"jpeg": b"\xff\xda", "webp": b"VP8L"}[file_format]) + 60
    path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
    with pytest.raises(UserError, match="its pixels are not those that were written"):
        list(made(model, target, prompt()))
    again = Target(tmp_path, file_format=file_format, overwrite=True)  # type: ignore[arg-type]
    (path,) = made(model, again, prompt())
    assert path.read_bytes() == data


def test_signed_images_and_what_they_were_made_from(model: Path, tmp_path: Path) -> None:
    pytest.importorskip("c2pa")
    signing = Signing(identity(tmp_path / "alice", "Alice"))
    roots = [(tmp_path / "alice" / ROOT).read_text()]
    (first,) = made(model, Target(tmp_path / "a", signing=signing), prompt())
    assert provenance_of(first, roots).signature == "trusted"
    assert source_type_in(read_metadata(first)) == MADE
    mask = tmp_path / "mask.bmp"  # a format that C2PA does not know
    photo(64, 64).save(mask)
    edit = prompt(strength=1.0)
    edit = Prompt(edit.prompt, edit.settings, read_inputs(first, mask))
    target = Target(tmp_path / "b", signing=signing, file_format="jpeg", resume=True)
    (second,) = made(model, target, edit)
    found = provenance_of(second, roots)
    assert found.signature == "trusted" and found.credentials is not None and found.source_type == EDITED
    facts = [(each.title, each.signer, each.intact) for each in found.credentials.ingredients]
    assert facts == [(first.name, "Alice", True), ("mask.bmp", None, True)]
    assert "prompt" not in (found.credentials.generation or {})


def test_an_image_without_a_signature_is_not_kept_if_it_is_to_have_one(model: Path, tmp_path: Path) -> None:
    pytest.importorskip("c2pa")
    list(made(model, Target(tmp_path / "a"), prompt()))
    target = Target(tmp_path / "a", signing=Signing(identity(tmp_path / "alice", "Alice")), resume=True)
    asked = job(model, target, prompt())
    with pytest.raises(UserError, match="is not signed"):
        finished_images(_loaded(model), asked.batches, target)


def _loaded(model: Path) -> Pipeline:
    from ldm.pipeline.pipeline import load_pipeline

    return load_pipeline(str(model), device="cpu")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"key": Path("k.pem"), "certificate": None, "sign": True}, "--sign-key without --sign-certificate"),
        ({"key": None, "certificate": Path("c.pem"), "sign": True}, "--sign-certificate without --sign-key"),
        (
            {"key": None, "certificate": None, "sign": True},
            "no identity to sign with: make one with `ldm prov",
        ),
    ],
)
def test_options_that_cannot_sign(
    given: dict[str, object], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LDM_IDENTITY_DIR", str(tmp_path))
    with pytest.raises(UserError, match=words):
        read_signing(**given, with_prompts=False)  # type: ignore[arg-type]

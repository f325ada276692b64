"""Marks, watermarks and credentials of images that a pipeline makes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ldm.cli import options
from ldm.errors import UserError
from ldm.generation.finished import finished_images
from ldm.generation.output import Target
from ldm.generation.signing import Signing, image_file, read_signing
from ldm.io.files import write_new
from ldm.io.image_metadata import ImageFormat, read_metadata
from ldm.models.generation_settings import GenerationSettings
from ldm.pipeline.batches import Prompt, list_images
from ldm.pipeline.input_images import read_inputs
from ldm.pipeline.pipeline import Pipeline, load_pipeline
from ldm.pipeline.record import read_record
from ldm.provenance.image_report import provenance_of
from ldm.provenance.marks import EDITED, MADE, source_type_in
from ldm.provenance.signing_identity import ROOT
from ldm.provenance.watermark import detect, payload_of
from tests.support.signatures import identity, told, with_a_changed_pixel
from tests.support.tiny_generate import generate, save_model_of_large_images
from tests.support.tiny_images import photo

pytestmark = pytest.mark.filterwarnings("ignore:.* pixels are far from this model's own")
FORMATS: tuple[ImageFormat, ...] = ("png", "jpeg", "webp")
"""WebP has no loss, like PNG."""
FAST = {"num_inference_steps": 1, "guidance_scale": 1.0, "seed": 3}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model_of_large_images(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def pipeline(model: Path) -> Pipeline:
    return load_pipeline(str(model), device="cpu")


def prompt(**more: object) -> Prompt:
    return Prompt("a red apple", GenerationSettings(**{**FAST, "height": 64, "width": 64, **more}))


def made(pipeline: Pipeline, target: Target, asked: Prompt) -> Path:
    """The file of an image, made as `ldm.generation.job.run_rank` makes it but with a model that is loaded already."""
    (image,) = pipeline.make_images([list_images([asked])], batch_size=1)
    signer = target.signing.signer() if target.signing else None
    path = target.path(image.request)
    write_new(path, image_file(image, signer, target.file_format), overwrite=target.overwrite)
    return path


def test_a_watermark_is_in_the_image_and_in_its_record(pipeline: Pipeline, tmp_path: Path) -> None:
    path = made(pipeline, Target(tmp_path / "a"), prompt(height=256, width=256, watermark=True))
    record = read_record(path)
    assert record.settings.watermark
    with Image.open(path) as image:
        assert detect(image, search=False).payload == payload_of(record.to_json())
    assert "as its record says" in provenance_of(path).line()
    plain = made(pipeline, Target(tmp_path / "b"), prompt(height=256, width=256))
    assert "watermark" not in json.loads(read_metadata(plain).texts["ldm"])
    with Image.open(path) as image, Image.open(plain) as other:
        assert 0 < np.abs(np.asarray(image, int) - np.asarray(other, int)).mean() < 12


def test_the_command_marks_signs_and_reproduces_in_every_format(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each image is made again from the file of the one before it; the last has the pixels of the first."""
    pytest.importorskip("c2pa")
    monkeypatch.setenv("LDM_IDENTITY_DIR", str(tmp_path / "alice"))
    identity(tmp_path / "alice", "Alice")
    asked: tuple[object, ...] = (
        "a red apple", "--seed", 3, "--num-inference-steps", 1, "--guidance-scale", 1, "--watermark",
    )  # fmt: skip
    paths: list[Path] = []
    for number, file_format in enumerate(FORMATS):
        output = tmp_path / str(number)
        generate(*asked, "--model", model, "--sign", "--format", file_format, "--output", output)
        paths += output.iterdir()
        asked = ("--reproduce", paths[-1])
    record = read_record(paths[0])
    ids, weights = payload_of(record.to_json()), str(record.weights_hash)[:10]
    for path, file_format in zip(paths, FORMATS, strict=True):
        assert read_record(path) == record and source_type_in(read_metadata(path)) == MADE
        said = f"signed by Alice; made by large (weights {weights}, seed 3); watermarked (model {ids.model:04x}, "
        assert told(path) == (0, f"{path}: {said}image {ids.image:04x}), as its record says\n")
        (tmp_path / "changed").write_bytes(with_a_changed_pixel(path.read_bytes(), file_format))
        code, line = told(tmp_path / "changed")
        assert code == 1 and ": TAMPERED: changed since Alice signed it" in line
    with Image.open(paths[0]) as first, Image.open(paths[-1]) as last:
        assert first.tobytes() == last.tobytes()


def test_small_images_are_refused_before_any_work(pipeline: Pipeline) -> None:
    steps: list[int] = []
    with pytest.raises(UserError, match="a watermark needs 256 x 256 pixels, and the image has 64 x 64"):
        list(
            pipeline.make_images(
                [list_images([prompt(), prompt(watermark=True)])],
                batch_size=2,
                on_step=lambda done, total, step, latents: steps.append(done),
            )
        )
    assert steps == []


def test_a_quality_of_png_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--quality has no effect on PNG, which has no loss: add --format"):
        Target(tmp_path / "new", quality=50).check(list_images([prompt()]))
    Target(tmp_path / "new", quality=50, file_format="webp").check(list_images([prompt()]))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("file_format", ["jpeg", "webp"])
def test_other_formats_are_resumed_by_pixels_and_record(
    pipeline: Pipeline, tmp_path: Path, file_format: ImageFormat
) -> None:
    target, batches = Target(tmp_path, file_format=file_format, resume=True), [list_images([prompt()])]
    path = made(pipeline, target, prompt())
    assert finished_images(pipeline, batches, target) == {1}
    path.write_bytes(with_a_changed_pixel(path.read_bytes(), file_format))
    with pytest.raises(UserError, match="its pixels are not those that were written"):
        finished_images(pipeline, batches, target)


def test_signed_images_and_what_they_were_made_from(pipeline: Pipeline, tmp_path: Path) -> None:
    pytest.importorskip("c2pa")
    signing = Signing(identity(tmp_path / "alice", "Alice"))
    roots = [(tmp_path / "alice" / ROOT).read_text()]
    first = made(pipeline, Target(tmp_path / "a", signing=signing), prompt())
    assert provenance_of(first, roots).signature == "trusted"
    assert source_type_in(read_metadata(first)) == MADE
    mask = tmp_path / "mask.bmp"  # a format that C2PA does not know
    photo(64, 64).save(mask)
    edit = prompt(strength=1.0)
    edit = Prompt(edit.prompt, edit.settings, read_inputs(first, mask))
    target = Target(tmp_path / "b", signing=signing, file_format="jpeg", resume=True)
    second = made(pipeline, target, edit)
    found = provenance_of(second, roots)
    assert found.signature == "trusted" and found.credentials is not None and found.source_type == EDITED
    facts = [(each.title, each.signer, each.intact) for each in found.credentials.ingredients]
    assert facts == [(first.name, "Alice", True), ("mask.bmp", None, True)]
    assert "prompt" not in (found.credentials.generation or {})


def test_an_image_without_a_signature_is_not_kept_if_it_is_to_have_one(
    pipeline: Pipeline, tmp_path: Path
) -> None:
    pytest.importorskip("c2pa")
    made(pipeline, Target(tmp_path / "a"), prompt())
    target = Target(tmp_path / "a", signing=Signing(identity(tmp_path / "alice", "Alice")), resume=True)
    with pytest.raises(UserError, match="is not signed"):
        finished_images(pipeline, [list_images([prompt()])], target)


NOTHING_GIVEN: dict[str, Any] = dict.fromkeys(options.SIGNING)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"sign_key": Path("k.pem")}, "--sign-key without --sign-certificate"),
        ({"sign_certificate": Path("c.pem")}, "--sign-certificate without --sign-key"),
        (
            {},
            "no identity to sign with: make one with `ldm prov",
        ),
    ],
)
def test_options_that_cannot_sign(
    given: dict[str, Any], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LDM_IDENTITY_DIR", str(tmp_path))
    with pytest.raises(UserError, match=words):
        read_signing(**{**NOTHING_GIVEN, "sign": True, **given})

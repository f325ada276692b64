"""With --sign, every way by which an image leaves the server is signed; unfinished previews have the marks alone."""

import base64
import io
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from PIL import Image

from ldm.io.image_metadata import COMMENT_KEY, read_metadata
from ldm.io.image_writing import record_text
from ldm.models.generation_settings import GenerationSettings
from ldm.provenance.credentials import ImageSigner, read_credentials
from ldm.provenance.marks import EDITED, MADE, source_type_in
from ldm.provenance.safety import SafetyChecker
from ldm.web.application import make_application
from ldm.web.guard import Guard
from ldm.web.service import Asked, Service
from tests.support.signatures import identity
from tests.support.tiny_generate import generate, save_model
from tests.support.tiny_images import photo
from tests.support.tiny_web import call, png_of, working

pytest.importorskip("c2pa")
QUICK: dict[str, Any] = {"prompt": "a", "seed": 3, "num_inference_steps": 1}
FORMATS = ("png", "jpeg", "webp")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("signed")


@pytest.fixture(scope="module")
def model(folder: Path) -> Path:
    return save_model(folder)


@pytest.fixture(scope="module")
def service(folder: Path, model: Path) -> Iterator[Service]:
    signer = ImageSigner(identity(folder / "alice", "Alice"))
    with working(model, signer=signer, checker=SafetyChecker("planted", lambda image: 0.75)) as made:
        yield made


@pytest.fixture(scope="module")
def application(service: Service) -> Guard:
    return make_application(service)


def encoded(image: Image.Image) -> str:
    return base64.b64encode(png_of(image)).decode()


def check_signed(data: bytes, kind: str = MADE, ingredients: int = 0) -> None:
    """Signed by Alice, not changed since, and with the marks."""
    found = read_credentials(data)
    assert found is not None and found.signer == "Alice" and not found.tampered
    assert found.source_type == kind and len(found.ingredients) == ingredients
    metadata = read_metadata(data)
    assert source_type_in(metadata) == kind and "AI (OpenLDM)" in metadata.texts.get(
        COMMENT_KEY, metadata.properties["dc:description"]
    )


@pytest.mark.parametrize("file_format", FORMATS)
def test_openais_answers(application: Guard, file_format: str, model: Path, tmp_path: Path) -> None:
    asked = QUICK | {"output_format": file_format, "n": 1}
    (made,) = call(application, "/v1/images/generations", body=asked).json["data"]
    data = base64.b64decode(made["b64_json"])
    check_signed(data)
    answer = call(application, urlsplit(made["url"]).path)
    assert answer.body == data and answer.headers["content-type"] == f"image/{file_format}"
    metadata = read_metadata(data)
    assert metadata.format == file_format and '"flagged": true' in (record_text(metadata) or "")
    given = ("--seed", 3, "--num-inference-steps", 1, "--format", file_format, "--model", model)
    generate("a", *given, "--output", tmp_path / "o")
    (plain,) = (tmp_path / "o").iterdir()
    with Image.open(io.BytesIO(data)) as image, Image.open(plain) as wanted:
        assert image.tobytes() == wanted.tobytes()


def test_openais_edits(application: Guard) -> None:
    parts = {
        "prompt": b"a",
        "num_inference_steps": b"2",
        "output_format": b"jpeg",
        "output_compression": b"80",
    }
    body = b"".join(
        b'--x\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n' % (name.encode(), value)
        for name, value in parts.items()
    )
    head = b'--x\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n'
    body += head + png_of(photo(16, 16)) + b"\r\n--x--\r\n"
    headers = {"content-type": "multipart/form-data; boundary=x"}
    answer = call(application, "/v1/images/edits", body=body, headers=headers)
    check_signed(base64.b64decode(answer.json["data"][0]["b64_json"]), EDITED, ingredients=1)


def test_a1111s_answers(application: Guard) -> None:
    asked = {"prompt": "a", "width": 16, "height": 16, "steps": 2, "batch_size": 2}
    for text in call(application, "/sdapi/v1/txt2img", body=asked).json["images"]:
        check_signed(base64.b64decode(text))
    asked |= {"init_images": [encoded(photo(16, 16))]}
    for text in call(application, "/sdapi/v1/img2img", body=asked).json["images"]:
        check_signed(base64.b64decode(text), EDITED, ingredients=1)


@pytest.mark.parametrize(("given", "kind"), [({}, MADE), ({"image": encoded(photo(16, 16))}, EDITED)])
def test_the_pages_images_and_grids(
    application: Guard, service: Service, given: dict[str, str], kind: str
) -> None:
    asked = QUICK | {"num_images": 3, "num_inference_steps": 2, **given}
    found = call(application, "/ldm/jobs", body=asked).json
    service.queue.find(found["id"]).ended.result(60)
    found = call(application, f"/ldm/jobs/{found['id']}").json
    for image in found["images"]:
        check_signed(call(application, image["url"]).body, kind, ingredients=len(given))
    sheet = call(application, f"/ldm/jobs/{found['id']}/grid.png").body
    check_signed(sheet, kind, ingredients=3)
    credentials = read_credentials(sheet)
    assert credentials is not None
    assert {(each.signer, each.intact) for each in credentials.ingredients} == {("Alice", True)}


def test_grids_of_jpegs_are_shown(application: Guard, service: Service) -> None:
    settings = GenerationSettings(num_inference_steps=1, num_images=2)
    job = service.submit("me", Asked("a", settings, file_format="jpeg", quality=80))
    job.ended.result(60)
    described = call(application, f"/ldm/jobs/{job.id}").json["images"][0]
    assert described["file_name"].endswith(".jpg") and described["url"].endswith("/1.jpg")
    assert call(application, described["url"].replace(".jpg", ".png")).status == 404
    check_signed(call(application, f"/ldm/jobs/{job.id}/grid.png").body, ingredients=2)


def test_previews_are_marked_and_not_signed(service: Service) -> None:
    job = service.submit("me", Asked("a", GenerationSettings(num_inference_steps=250)))
    while not (job.oldest_turn and job.oldest_turn.previews):
        time.sleep(0.002)
    preview = job.oldest_turn.previews[0]
    service.queue.cancel(job)
    job.ended.result(60)
    assert source_type_in(read_metadata(preview)) == MADE and read_credentials(preview) is None


def test_the_commands_grid_is_signed(
    model: Path, folder: Path, service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LDM_IDENTITY_DIR", str(folder / "alice"))
    asked = ("a", "-n", 2, "--num-inference-steps", 1, "--seed", 3, "--grid", "--sign", "--model", model)
    generate(*asked, "--output", tmp_path)
    check_signed((tmp_path / "grid.png").read_bytes(), ingredients=2)
    again = generate(*asked, "--resume", "--output", tmp_path)
    assert again.exit_code == 0, again.stderr

"""What a hostile client sends: paths, URLs, giant sizes, bombs. Each is one line of JSON, and nothing is made."""

import base64
import io
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ldm.errors import UserError
from ldm.models.generation_settings import GenerationSettings
from ldm.models.settings_reading import bounds
from ldm.pipeline.input_images import read_input
from ldm.web.application import make_application
from ldm.web.caps import Caps
from ldm.web.guard import Guard
from ldm.web.service import Service
from ldm.web.uploads import UploadReader, from_base64
from tests.support.tiny_web import call, make_service, png_of


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    caps = Caps(upload_pixels=1_000_000, burst=100_000, waiting=1000, waiting_each=1000)
    made = make_service(caps)
    yield made
    made.uploads.close()


@pytest.fixture(scope="module")
def guard(service: Service) -> Guard:
    return make_application(service)


def as_text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few kilobytes that claims to be large; its pixels are zeros."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(bytes(1_000_000)))
    return b"\x89PNG\r\n\x1a\n" + head + pixels + chunk(b"IEND", b"")


SMALL = png_of(Image.new("RGB", (16, 16), "red"))
NOT_IMAGES = {
    "/etc/passwd": "image is not base64: send the image itself",
    "../../etc/passwd": "image is not base64",
    "~/.ssh/id_rsa": "image is not base64",
    "file:///etc/passwd": "image is a URL",
    "http://169.254.169.254/latest/meta-data": "image is a URL: send the image itself in image, as base64",
    "https://evil.example/a.png": "this server fetches nothing",
    "data:image/svg+xml;base64,"
    + as_text(b"<svg xmlns='http://www.w3.org/2000/svg'/>"): "not an image in a known",
    as_text(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"): "not an image in a known format",
    as_text(b""): "the file is empty",
    as_text(png_of(Image.effect_noise((16, 16), 90))[:150]): "image: broken image",
    as_text(bomb(100_000, 100_000)): "too large",
    as_text(bomb(1001, 1000)): "too large (1001 x 1000 pixels): shrink it to at most 1 megapixels",
}


@pytest.mark.parametrize("text", NOT_IMAGES, ids=lambda text: text[:24])
def test_an_image_field_takes_images_only(guard: Guard, text: str) -> None:
    answer = call(guard, "/ldm/jobs", body={"prompt": "a", "image": text} if text else {"image": "x"})
    assert answer.status == 400 and "\n" not in answer.error
    assert (NOT_IMAGES[text] if text else "not base64") in answer.error


@pytest.mark.parametrize("field", ["init_images", "mask"])
def test_the_same_holds_for_a1111s_fields(guard: Guard, field: str) -> None:
    sent = {"init_images": [as_text(SMALL)], "mask": as_text(SMALL), "prompt": "a"}
    for text in ("http://127.0.0.1:7860/health", "/etc/passwd", 5, None if field == "init_images" else {}):
        value: Any = [text] if field == "init_images" else text
        if field == "mask" and not text:
            continue
        answer = call(guard, "/sdapi/v1/img2img", body={**sent, field: value})
        assert answer.status == 400 and field in answer.error


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"width": 16384}, "width is 16384: this server makes at most 2048"),
        ({"height": 10**30}, "height is"),
        ({"num_inference_steps": 100_000}, "num_inference_steps is 100000: this server makes at most 250"),
        ({"num_images": 1_000_000}, "the request is for 1,000,000 images: ask for at most 64"),
        ({"to_seed": 1, "num_frames": 1_000_000}, "1,000,000 images"),
        ({"num_images": 10, "to_prompt": "b"}, "80 images"),
        ({"grid_x": "seed=" + ",".join(map(str, range(65)))}, "65 images"),
        ({"grid_x": "seed=1,2,3,4,5,6,7,8,9", "grid_y": "guidance_scale=1,2,3,4,5,6,7,8"}, "72 images"),
        ({"grid_x": "width=4096,64"}, "width is 4096: this server makes at most 2048"),
        ({"prompt": "a" * 10_001}, "prompt has 10,001 characters"),
        ({"negative_prompt": "a" * 10_001}, "negative_prompt has 10,001 characters"),
        ({"prompt": ["a"]}, "prompt is ['a']: it must be text"),
        ({"prompt": "\ud800"}, "not valid Unicode"),
        ({"output": "/tmp/x"}, "unknown setting 'output'"),
        ({"prompt_file": "/etc/passwd"}, "unknown setting 'prompt_file'"),
        ({"control": "canny=/etc/passwd"}, "unknown setting 'control'"),
        ({"reference": "/etc/passwd"}, "unknown setting 'reference'"),
        ({"controls": {"canny": {"image": "/etc/passwd"}}}, "controls.canny.image is not base64"),
        ({"controls": {"../x": {"image": as_text(SMALL)}}}, "../x"),
        ({"mask": as_text(SMALL)}, "a mask is given without an image"),
        ({"image": as_text(SMALL), "mask": "alpha"}, "mask"),
        ({"loras": [1.0]}, "loras has 1 weights: give one for each LoRA of this server"),
        ({"loras": ["/etc/x.safetensors"]}, "it must be a list of weights"),
        ({"loras": [1e9]}, "it must be a list of weights from -4 to 4"),
        ({"image": as_text(SMALL), "expand": "top=99999"}, "expand"),
        ({"guidance_scale": "NaN"}, "guidance_scale is 'NaN'"),
        ({"scheduler": "../../x"}, "unknown scheduler"),
    ],
    ids=lambda each: str(each)[:40],
)
def test_more_than_the_server_makes_is_refused(
    guard: Guard, service: Service, given: dict[str, Any], said: str
) -> None:
    before = service.queue.num_waiting()
    answer = call(guard, "/ldm/jobs", body={"prompt": "a", **given})
    if answer.status == 202 and "expand" in given:  # its size is known when the model completes the settings
        return
    assert answer.status == 400 and said in answer.error and "\n" not in answer.error
    assert service.queue.num_waiting() == before


@pytest.mark.parametrize("name", ["/etc", "../tiny", "emoji", "https://example.org/model", "tiny/", "TINY"])
def test_models_are_served_or_do_not_exist(guard: Guard, service: Service, name: str) -> None:
    before = service.queue.num_waiting()
    image = {"prompt": "a", "override_settings": {"sd_model_checkpoint": name}}
    for path, body in {
        "/ldm/jobs": {"prompt": "a", "model": name},
        f"/ldm/form?model={name}": None,
        "/v1/images/generations": {"prompt": "a", "model": name},
        "/sdapi/v1/txt2img": image,
        "/sdapi/v1/options": {"sd_model_checkpoint": name},
    }.items():
        answer = call(guard, path, body=body)
        assert answer.status == 404 and answer.error == f"model {name!r} is not served here: use 'tiny'"
    for odd in ({"a": 1}, ["tiny"], 7, True):
        assert call(guard, "/ldm/jobs", body={"prompt": "a", "model": odd}).status == 404
    assert service.queue.num_waiting() == before


@pytest.mark.parametrize(
    "body", [b"{", b"[" * 100_000, b'"a"', b"[]", b"\xff\xfe", b'{"seed": ' + b"9" * 5000 + b"}", b"null"]
)
@pytest.mark.parametrize("path", ["/ldm/jobs", "/ldm/read", "/v1/images/generations", "/sdapi/v1/img2img"])
def test_broken_json_is_one_line(guard: Guard, path: str, body: bytes) -> None:
    answer = call(guard, path, body=body)
    assert answer.status == 400 and "\n" not in answer.error and len(answer.error) < 300


HARMLESS = {
    "seed", "to_seed", "guidance_scale", "image_guidance_scale", "apg_eta", "apg_norm_threshold", "pag_scale", "churn",
    "deep_features_every", "num_images", "num_frames", "tile_size",
}  # fmt: skip
"""Numbers without a small upper bound of their own that take no time, or that are counted elsewhere."""


def test_every_number_that_could_take_forever_has_a_cap() -> None:
    """A new setting without a small upper bound is found here: cap it in `Caps`, or add it above."""
    checked = 0
    for name, field in GenerationSettings.model_fields.items():
        highest = bounds(field)[1]
        if field.annotation in (int, float) and (highest is None or highest > 1000) and name not in HARMLESS:
            with pytest.raises(UserError, match=name):
                Caps().check_settings(GenerationSettings(**{"tile_size": 8192, name: 8192}))
            checked += 1
    assert checked >= 6


# The decoder


def test_a_bomb_does_not_take_the_servers_memory(service: Service) -> None:
    deep = io.BytesIO()
    Image.new("RGB", (900, 1000)).save(deep, "TIFF", compression="tiff_deflate")
    assert service.uploads.image(deep.getvalue(), "image").size == (900, 1000)
    with pytest.raises(UserError, match="image: "):
        service.uploads.image(bomb(1000, 1000), "image")  # fewer pixels than it claims
    assert service.uploads.image(SMALL, "image").size == (16, 16)


def test_a_decoder_that_hangs_or_dies_is_replaced() -> None:
    reader = UploadReader(10**6)
    try:
        assert reader.image(SMALL, "image").size == (16, 16)
        first = reader._process
        assert first is not None
        first.kill()
        first.wait()
        assert reader.image(SMALL, "image").size == (16, 16)
        second = reader._process
        assert second is not None and second is not first
        reader.max_sec = 0.0
        with pytest.raises(UserError, match="image: its decoder crashed or took too long"):
            reader.image(png_of(Image.effect_noise((1000, 900), 90)), "image")
        assert second.poll() is not None and reader._process is None, "the next image gets a new one"
    finally:
        reader.close()


def test_uploads_are_decoded_as_files_are(service: Service, tmp_path: Path) -> None:
    image = Image.effect_noise((20, 10), 90).convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize((20, 10)))
    data = png_of(image)
    (tmp_path / "a.png").write_bytes(data)
    for kind in ("photo", "mask", "alpha"):
        decoded = service.uploads.image(data, "image", kind)  # type: ignore[arg-type]
        own = read_input(decoded, "photo" if kind == "photo" else "mask")
        assert own.record == read_input(tmp_path / "a.png", kind).record  # type: ignore[arg-type]


def test_base64_of_any_kind_is_read() -> None:
    text = as_text(b"/9j/x")
    assert from_base64(text, "image") == from_base64(f"data:image/jpeg;base64,{text}\n", "image") == b"/9j/x"

"""Clients from PyPI, unchanged, against a server on a socket; the images are those of `ldm generate`, bit for bit."""

import base64
import json
import re
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openai import APIStatusError, NotFoundError, OpenAI
from PIL import Image
from webuiapi import WebUIApi

from ldm.generation.model_options import ModelOptions, load_model
from ldm.pipeline.pipeline import Pipeline
from ldm.pipeline.record import encode_with_record, read_record
from ldm.web.own_api import read_record as read_record_of
from ldm.web.service import Service
from tests.support.documents import ROOT
from tests.support.tiny_generate import save_model
from tests.support.tiny_images import box_mask, photo
from tests.support.tiny_web import listening, png_of, working

TOKEN = "correct-horse-battery"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def service(model: Path) -> Iterator[Service]:
    with working(model) as made:
        yield made


@pytest.fixture(scope="module")
def url(service: Service) -> Iterator[str]:
    with listening(service, token=TOKEN) as found:
        yield found


@pytest.fixture(scope="module")
def openai(url: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{url}/v1", api_key=TOKEN, max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def webui(url: str) -> Iterator[WebUIApi]:
    client = WebUIApi(
        baseurl=f"{url}/sdapi/v1", sampler="DPM++ 2M", steps=4, username="anyone", password=TOKEN
    )
    yield client
    client.session.close()


@pytest.fixture(scope="module")
def pipeline(model: Path) -> Pipeline:
    return load_model(ModelOptions(str(model)), None)


def made_by(pipeline: Pipeline, prompt: str, *file: Any, **given: Any) -> list[bytes]:
    """The files of images; tests/web/test_worker.py compares PNGs with those of the command line.

    Args:
        file: the format and quality of the files.
    """
    made = pipeline.generate(prompt, **given)
    return [
        encode_with_record(image, record, *file)
        for image, record in zip(made.images, made.records, strict=True)
    ]


# OpenAI's


def test_openai_makes_the_same_images(openai: OpenAI, pipeline: Pipeline) -> None:
    settings = {"seed": 7, "num_inference_steps": 3, "scheduler": "euler_a", "negative_prompt": "blue"}
    made = openai.images.generate(
        model="dall-e-2",
        prompt="a red apple",
        n=10,
        size="16x24",
        response_format="b64_json",
        extra_body=settings,
    )
    wanted = made_by(pipeline, "a red apple", num_images=10, width=16, height=24, **settings)
    assert made.data is not None
    assert [base64.b64decode(each.b64_json or "") for each in made.data] == wanted


@pytest.mark.parametrize(
    ("file_format", "compression", "quality"), [("jpeg", None, None), ("webp", 80, 80), ("webp", 0, 1)]
)
def test_openai_gets_other_formats_with_the_settings_in_them(
    openai: OpenAI, pipeline: Pipeline, tmp_path: Path, file_format: Any, compression: Any, quality: Any
) -> None:
    asked = {"output_format": file_format} | (
        {} if compression is None else {"output_compression": compression}
    )
    made = openai.images.generate(prompt="a", extra_body={"seed": 7, "num_inference_steps": 1}, **asked)
    assert made.data is not None and made.output_format == file_format
    assert str(made.data[0].url).endswith({"jpeg": "/1.jpg", "webp": "/1.webp"}[file_format])
    data = base64.b64decode(made.data[0].b64_json or "")
    assert [data] == made_by(pipeline, "a", file_format, quality, seed=7, num_inference_steps=1)
    (tmp_path / "a.jpg").write_bytes(data)
    assert read_record(tmp_path / "a.jpg").seed == 7


def test_openai_gets_urls_of_this_server(openai: OpenAI, url: str) -> None:
    made = openai.images.generate(prompt="a", response_format="url", extra_body={"num_inference_steps": 1})
    assert made.data is not None and made.data[0].url is not None and made.data[0].url.startswith(url)
    assert made.data[0].b64_json is None
    request = urllib.request.Request(made.data[0].url, headers={"authorization": f"Bearer {TOKEN}"})
    with urllib.request.urlopen(request) as answer, Image.open(answer) as image:
        assert image.size == (16, 16)


def test_openai_edits_what_is_transparent(openai: OpenAI, pipeline: Pipeline) -> None:
    image = photo(16, 16, seed=1)
    mask = image.convert("RGBA")
    white = box_mask((16, 16), (4, 4, 11, 11))
    mask.putalpha(white.point(lambda value: 255 - value))
    settings = {"seed": 3, "num_inference_steps": 2, "guidance_scale": 2.5}
    made = openai.images.edit(
        image=("image.png", png_of(image)),
        mask=("mask.png", png_of(mask)),
        prompt="a",
        response_format="b64_json",
        extra_body=settings,
    )
    wanted = made_by(pipeline, "a", image=image, mask=white, **settings)
    assert made.data is not None
    assert [base64.b64decode(each.b64_json or "") for each in made.data] == wanted


def test_openai_changes_a_whole_image_without_a_mask(openai: OpenAI, service: Service) -> None:
    made = openai.images.edit(image=png_of(photo(16, 16)), prompt="a", extra_body={"num_inference_steps": 2})
    assert made.data is not None
    record = read_record_of(service, base64.b64decode(made.data[0].b64_json or ""))
    assert record.task == "image-to-image" and list(record.inputs) == ["image"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"size": "huge"}, "size is 'huge': write width x height in pixels"),
        ({"size": "4096x4096"}, "height is 4096: this server makes at most 2048"),
        ({"n": 65}, "ask for at most 64"),
        ({"extra_body": {"sed": 3}}, "unknown setting 'sed': did you mean 'seed'?"),
        ({"extra_body": {"scheduler": "eulr"}}, "did you mean 'euler'?"),
        ({"extra_body": {"strength": 0.5}}, "strength has no effect on text-to-image"),
        (
            {"extra_body": {"output_format": "tiff"}},
            "output_format is 'tiff': it must be one of png, jpeg, webp",
        ),
        ({"output_format": "jpeg", "output_compression": 101}, "output_compression is 101: it must be"),
        ({"stream": True}, "stream is True"),
    ],
    ids=str,
)
def test_openai_is_told_which_field_is_wrong(openai: OpenAI, given: dict[str, Any], said: str) -> None:
    with pytest.raises(APIStatusError) as caught:
        openai.images.generate(**{"prompt": "a", **given})
    assert caught.value.status_code == 400 and said in caught.value.message
    assert caught.value.type == "invalid_request_error"


def test_openai_is_told_what_has_no_effect_and_of_other_models(openai: OpenAI) -> None:
    made = openai.images.generate(
        prompt="a", quality="hd", extra_body={"num_inference_steps": 1, "height": 17}
    )
    assert made.model_extra is not None
    assert made.model_extra["warnings"][0] == "quality 'hd' has no effect here"
    assert "height 17 is rounded to 18" in made.model_extra["warnings"][1]
    with pytest.raises(NotFoundError, match="model 'sdxl' is not served here: use 'one'"):
        openai.images.generate(prompt="a", model="sdxl")
    assert [each.id for each in openai.models.list()] == ["one"]


def test_openai_without_the_token_is_told(url: str) -> None:
    with (
        OpenAI(base_url=f"{url}/v1", api_key="wrong-wrong", max_retries=0) as client,
        pytest.raises(APIStatusError, match="the token is wrong: send it as Authorization"),
    ):
        client.images.generate(prompt="a")


def test_the_guides_examples_run(service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    photo(16, 16).save("photo.png")
    box_mask((16, 16), (2, 2, 10, 10)).save("mask.png")
    guide = (ROOT / "docs/guides/web.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", guide, flags=re.MULTILINE | re.DOTALL)
    assert len(blocks) == 2
    with listening(service) as url:
        for block in blocks:
            named: dict[str, Any] = {}
            block = block.replace("64", "16").replace("http://127.0.0.1:7860", url)
            exec(block.replace("7860", url.rpartition(":")[2]), named)
            assert named["made"]
            client = named["client"]
            (client.session if hasattr(client, "session") else client).close()
    assert named["made"].images[0].size == (16, 16)


# A1111's


SENT = {"num_inference_steps": 4, "guidance_scale": 7.0, "scheduler": "dpmpp_2m", "negative_prompt": ""}
"""What webuiapi sends unless told otherwise, under our names."""


def test_webui_makes_the_same_images(webui: WebUIApi, pipeline: Pipeline) -> None:
    made = webui.txt2img(
        prompt="a red apple", seed=5, batch_size=2, n_iter=1, width=16, height=16, scheduler="Karras"
    )
    given = {"seed": 5, "num_images": 2, "width": 16, "height": 16, "karras": True}
    wanted = made_by(pipeline, "a red apple", **SENT, **given)
    assert [base64.b64decode(text) for text in made.json["images"]] == wanted
    assert made.info["all_seeds"] == [5, 6] and made.info["sampler_name"] == "DPM++ 2M"
    assert made.info["warnings"] == [] and "Schedule type: Karras" in made.info["infotexts"][0]
    assert "Seed: 5" in webui.png_info(made.image).info


@pytest.mark.parametrize("inverted", [0, 1])
def test_webui_inpaints(webui: WebUIApi, pipeline: Pipeline, inverted: int) -> None:
    image, mask = photo(16, 16, seed=1), box_mask((16, 16), (4, 4, 11, 11))
    given = {"seed": 3, "width": 16, "height": 16}
    more = {"mask_blur": 2, "denoising_strength": 0.5, "inpainting_mask_invert": inverted}
    made = webui.img2img(images=[image], mask_image=mask, prompt="a", **given, **more)
    shown = mask.point(lambda value: 255 - value) if inverted else mask
    wanted = made_by(pipeline, "a", image=image, mask=shown, strength=0.5, mask_feather=2, **SENT, **given)
    assert [base64.b64decode(text) for text in made.json["images"]] == wanted
    assert any("inpaint_full_res" in text for text in made.info["warnings"])


def test_webui_sees_the_server(webui: WebUIApi) -> None:
    assert webui.util_get_model_names()[0].startswith("one [")
    webui.util_set_model("one")
    assert webui.util_get_current_model() == webui.util_get_model_names()[0]
    assert {"Euler a", "DPM++ 2M", "model"} <= set(webui.util_get_sampler_names())
    webui.util_wait_for_ready()
    assert webui.get_loras() == [] and webui.get_upscalers() == []


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"sampler_name": "Eular a"}, "unknown sampler_name 'Eular a': did you mean 'Euler a'"),
        ({"scheduler": "beta"}, "unknown scheduler 'beta'"),
        ({"enable_hr": True}, "enable_hr is True: it is not offered here"),
        ({"alwayson_scripts": {"roop": {"args": ["x"]}}}, "there are no extensions here"),
        ({"prompt": "a <lora:film:0.8>"}, "unknown LoRA 'film'"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"override_settings": {"sd_model_checkpoint": "other"}}, "'other' is not served here"),
    ],
    ids=str,
)
def test_webui_is_told_what_is_wrong(webui: WebUIApi, given: dict[str, Any], said: str) -> None:
    with pytest.raises(RuntimeError) as caught:
        webui.txt2img(**{"prompt": "a", "width": 16, "height": 16, **given})
    assert said in json.loads(caught.value.args[1])["detail"]


def test_webui_sees_progress_and_interrupts(webui: WebUIApi, service: Service) -> None:
    results: list[Any] = []
    asked = {"prompt": "a", "width": 16, "height": 16, "steps": 250, "n_iter": 60}
    thread = threading.Thread(target=lambda: results.append(webui.txt2img(**asked)))
    thread.start()
    other = WebUIApi(baseurl=webui.baseurl, username="anyone", password=TOKEN)
    while not (state := other.get_progress())["current_image"]:
        pass
    assert 0 < state["progress"] < 1 and state["state"]["sampling_steps"] >= 250
    other.interrupt()
    thread.join(30)
    other.session.close()
    (result,) = results
    assert len(result.images) < 60 and service.queue.num_waiting() == 0


def test_weights_in_prompts_count_as_they_do_in_a1111(webui: WebUIApi, tmp_path: Path) -> None:
    for prompt, rule in (("a (red:1.3) apple", "a1111"), ("a red apple", "none")):
        made = webui.txt2img(prompt=prompt, width=16, height=16, steps=1)
        (tmp_path / "a.png").write_bytes(base64.b64decode(made.json["images"][0]))
        assert read_record(tmp_path / "a.png").settings.prompt_weights == rule
    with Image.open(tmp_path / "a.png") as image:
        assert "Steps: 1" in image.text["parameters"]  # type: ignore[attr-defined]

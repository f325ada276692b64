"""The form of the page follows from the settings; a made-up setting appears by itself."""

import base64
from dataclasses import replace
from typing import Annotated, Any

import pytest
from pydantic import Field

from ldm.models.generation_settings import AESTHETIC_SCORE, SECOND_PROMPT, SIZES, GenerationSettings, Setting
from ldm.web.application import make_application
from ldm.web.caps import Caps
from ldm.web.form import FIRST, describe_form, label_of, read_settings
from ldm.web.queue import JobQueue
from ldm.web.served_model import ServedModel
from ldm.web.service import Service
from tests.support.tiny_images import photo
from tests.support.tiny_web import MODEL, call, make_service, png_of


class WithSharpness(GenerationSettings):
    """A made-up setting, added in one place."""

    sharpness: Annotated[float, Setting("S", model_default=True)] = Field(
        0.5, ge=0, le=2, strict=True, description="How sharp the edges are."
    )


def fields(model: ServedModel = MODEL, kind: type[GenerationSettings] = GenerationSettings) -> dict[str, Any]:
    return {field["name"]: field for field in describe_form(kind, model, Caps())["fields"]}


def test_a_new_setting_appears_by_itself() -> None:
    assert fields(kind=WithSharpness)["sharpness"] == {
        "name": "sharpness",
        "label": "Sharpness",
        "help": "How sharp the edges are.",
        "first": False,
        "tasks": [],
        "default": 0.5,
        "input": "number",
        "whole": False,
        "min": 0,
        "max": 2,
    }
    service = Service([MODEL], JobQueue(Caps()), batch_size=8, kind=WithSharpness)
    app = make_application(service)
    assert "sharpness" in call(app, "/ldm/form").body.decode()
    assert "sharpness" in call(app, "/openapi.json").body.decode()
    for path in ("/ldm/jobs", "/v1/images/generations"):
        wrong = call(app, path, body={"prompt": "a", "sharpness": 3})
        assert wrong.error == "sharpness is 3: it must be a number from 0 to 2"
    assert call(app, "/ldm/jobs", body={"prompt": "a", "sharpness": 1.5}).status == 202
    (job,) = service.queue.jobs_of("127.0.0.1")
    assert job.requests[0].settings.given()["sharpness"] == 1.5


def test_every_setting_is_in_the_form_of_some_model() -> None:
    told = (SIZES, SECOND_PROMPT, AESTHETIC_SCORE)
    found = fields(replace(MODEL, told=told, controls=("canny",), has_refiner=True))
    assert "denoising_end" not in fields(replace(MODEL, told=told, controls=("canny",)))
    assert set(found) == set(GenerationSettings.model_fields)
    assert [name for name in found if found[name]["first"]] == list(FIRST)
    assert {each["input"] for each in found.values()} == {"text", "number", "choice", "switch", "pair"}


def test_control_and_reference_images_are_given_by_kind() -> None:
    model = replace(MODEL, controls=("depth",), has_references=True)
    assert describe_form(GenerationSettings, model, Caps())["controls"] == ["depth", "reference"]
    service = make_service(model=model)
    images = [{"image": base64.b64encode(png_of(photo(16, 16, seed=n))).decode(), "scale": n} for n in (1, 2)]
    sent = {"prompt": "a", "controls": {"reference": images[0], "depth": images[1]}}
    assert call(make_application(service), "/ldm/jobs", body=sent).status == 202
    service.uploads.close()
    (job,) = service.queue.jobs_of("127.0.0.1")
    assert [(each.kind, each.scale) for each in job.requests[0].controls] == [
        ("depth", 2.0),
        ("reference", 1.0),
    ]


def test_what_a_model_has_no_use_for_is_left_out() -> None:
    found = fields()
    assert not {"prompt_2", "original_size", "aesthetic_score", "guess_mode", "canny_thresholds"} & set(found)
    assert found["strength"]["tasks"] == ["image-to-image", "depth-from-image", "blended-inpaint", "inpaint"]
    assert describe_form(GenerationSettings, MODEL, Caps())["tasks"] == {
        "": "text-to-image",
        "image": "image-to-image",
        "image mask": "blended-inpaint",
    }


def test_the_form_starts_with_the_models_defaults_within_the_caps() -> None:
    found = fields()
    assert (found["height"]["default"], found["height"]["max"]) == (16, 2048)
    assert found["num_images"]["max"] == 64 and found["num_inference_steps"]["max"] == 250
    assert found["seed"]["default"] is None and found["seed"]["max"] is None
    assert "euler_a" in found["scheduler"]["choices"] and found["guidance_interval"]["input"] == "pair"


@pytest.mark.parametrize("name", list(GenerationSettings.model_fields))
def test_what_the_form_starts_with_is_accepted(name: str) -> None:
    field = fields().get(name)
    if field is not None and field["default"] not in (None, ""):
        assert name in read_settings({name: field["default"]}, GenerationSettings).given() or name == "preset"


def test_labels_are_words() -> None:
    assert label_of("guidance_scale") == "Guidance scale"
    assert label_of("num_inference_steps") == "Inference steps"

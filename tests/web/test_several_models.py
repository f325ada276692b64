"""Several models in one server: chosen by name in each interface, kept within a number, and images as of `--model`."""

import base64
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ldm.errors import UserError
from ldm.generation.model_options import ModelOptions
from ldm.models.engines import compiled
from ldm.models.generation_settings import GenerationSettings
from ldm.web.application import make_application
from ldm.web.caps import Caps
from ldm.web.guard import Guard
from ldm.web.image_maker import BatchOrder, ImageMaker
from ldm.web.loaded_models import LoadedModels
from ldm.web.queue import JobQueue
from ldm.web.served_model import distinct_names
from ldm.web.service import MOST_CHOICES, Asked, Service
from tests.support.tiny_generate import files, generate, save_model, save_model_of_large_images
from tests.support.tiny_loras import as_diffusers, trained
from tests.support.tiny_models import make_sd1
from tests.support.tiny_web import MODEL, call, working

QUICK: dict[str, Any] = {"seed": 3, "num_inference_steps": 2}
OTHER = replace(MODEL, name="other", weights_hash="1" * 64, task="inpaint", number=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def models(folder: Path) -> list[Path]:
    return [save_model(folder), save_model_of_large_images(folder)]


@pytest.fixture(scope="module")
def lora(folder: Path) -> Path:
    return as_diffusers(trained(make_sd1(folder / "tokenizer")), folder / "film")


@pytest.fixture(scope="module")
def service(models: list[Path], lora: Path) -> Iterator[Service]:
    with working(models[0], str(lora), more=models[1:], most_models=1) as made:
        yield made


@pytest.fixture(scope="module")
def application(service: Service) -> Guard:
    return make_application(service)


def wanted(model: Path, output: Path, *more: object) -> bytes:
    """The file that `ldm generate` writes."""
    given = ("--seed", 3, "--num-inference-steps", 2, "--model", model, "--output", output)
    generate("a", *given, *more)
    (data,) = files(str(output)).values()
    return data


def test_each_interface_names_a_model_and_gets_its_images(
    application: Guard, service: Service, models: list[Path], lora: Path, tmp_path: Path
) -> None:
    """Only one of the two is in memory at a time."""
    one = wanted(models[0], tmp_path / "one", "--lora", lora)
    large = wanted(models[1], tmp_path / "large")
    assert list(service.models) == ["one", "large"] and one != large
    for name, data in (("large", large), ("one", one), ("dall-e-3", one), ("", one), ("large", large)):
        sent = {"prompt": "a", "model": name, **QUICK}
        (found,) = call(application, "/v1/images/generations", body=sent).json["data"]
        assert base64.b64decode(found["b64_json"]) == data
    for name, data in (("large", large), ("one", one)):
        job = call(application, "/ldm/jobs", body={"prompt": "a", "model": name, **QUICK}).json
        service.queue.find(job["id"]).ended.result(60)
        (image,) = call(application, f"/ldm/jobs/{job['id']}").json["images"]
        assert call(application, image["url"]).body == data and image["model"] == name
        assert call(application, "/ldm/read", body={"image": base64.b64encode(data).decode()}).json[
            "model"
        ] == (name)


def test_a1111s_clients_choose_for_one_request_or_for_their_next_ones(
    application: Guard, service: Service
) -> None:
    titles = [each["title"] for each in call(application, "/sdapi/v1/sd-models").json]
    assert titles == [model.title for model in service.models.values()] and titles[1].startswith("large [")
    asked = {"prompt": "a", "width": 16, "height": 16, "steps": 1}

    def chosen(client: str) -> str:
        headers = {"x-client": client}
        return str(call(application, "/sdapi/v1/options", headers=headers).json["sd_model_checkpoint"])

    def maker(client: str, **more: Any) -> str:
        headers = {"x-client": client}
        answer = call(application, "/sdapi/v1/txt2img", body=asked | more, headers=headers)
        return str(answer.json["info"]).partition('"sd_model_name": "')[2].partition('"')[0]

    override = {"sd_model_checkpoint": titles[1]}
    assert maker("me", override_settings=override) == "large" and chosen("me") == titles[0]
    assert maker("me", override_settings=override, override_settings_restore_afterwards=False) == "large"
    assert chosen("me") == titles[1] and maker("me") == "large"
    assert chosen("you") == titles[0] and maker("you") == "one"
    headers = {"x-client": "you"}
    call(application, "/sdapi/v1/options", body={"sd_model_checkpoint": "large"}, headers=headers)
    assert chosen("you") == titles[1] and call(application, "/sdapi/v1/loras", headers=headers).json == []
    assert [each["name"] for each in call(application, "/sdapi/v1/loras").json] == ["film"]


def test_openai_lists_them(application: Guard) -> None:
    assert [each["id"] for each in call(application, "/v1/models").json["data"]] == ["one", "large"]


def test_the_form_follows_the_model(application: Guard) -> None:
    forms = {name: call(application, f"/ldm/form?model={name}").json for name in ("one", "large")}
    sizes = {
        name: next(field["default"] for field in form["fields"] if field["name"] == "height")
        for name, form in forms.items()
    }
    assert sizes == {"one": 16, "large": 256}
    assert [len(form["loras"]) for form in forms.values()] == [1, 0]
    assert all(form["models"] == ["one", "large"] for form in forms.values())
    assert call(application, "/ldm/form").json == forms["one"]


def test_weights_are_those_of_the_models_loras(service: Service) -> None:
    asked = Asked("a", GenerationSettings(), model=service.models["large"], lora_weights=(1.0,))
    with pytest.raises(UserError, match="loras has 1 weights: give one for each LoRA of this server's large"):
        service.submit("me", asked)


def test_the_model_unused_for_the_longest_makes_room(models: list[Path]) -> None:
    options = [ModelOptions(str(model)) for model in (*models, models[0])]
    held = LoadedModels(options, 2)
    assert [model.name for model in held.describe()] == ["one", "large", "one-2"]
    first, second = held.get(0), held.get(1)
    assert held.get(0) is first
    held.get(2)
    assert held.get(0) is first and held.get(1) is not second


def test_names_are_distinct() -> None:
    assert distinct_names(["a", "b", "a", "a-2", "a"]) == ["a", "b", "a-2", "a-2-2", "a-3"]


def test_choices_are_forgotten_before_they_fill_the_memory() -> None:
    service = Service([MODEL, OTHER], JobQueue(Caps()), batch_size=8)
    for number in range(MOST_CHOICES + 1):
        service.choose(f"client {number}", OTHER)
    assert service.chosen_by("client 0") is service.model and service.chosen_by("client 1") is OTHER
    assert len(service._chosen) == MOST_CHOICES


# What runs the denoiser


def made_by(options: ModelOptions, **settings: Any) -> bytes:
    """The file of an image that a server with these options makes."""
    service = Service([MODEL], JobQueue(Caps()), batch_size=8)
    job = service.submit("me", Asked("a", GenerationSettings(**QUICK, height=16, width=16, **settings)))
    maker = ImageMaker(LoadedModels([options], 2), service.caps, batch_size=8)
    order = BatchOrder(job.waiting[0], job.requests)
    (image,) = maker.make(order, lambda done, total, previews: None)
    return image.data


@pytest.mark.slow
def test_a_compiled_model_makes_the_images_of_the_compiled_command(
    models: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiled, "BACKEND", "eager")
    data = wanted(models[0], tmp_path, "--height", 16, "--width", 16, "--compile")
    assert made_by(ModelOptions(str(models[0]), compile=True)) == data
    with pytest.raises(UserError, match="leave preset and deep_features_every out"):
        made_by(ModelOptions(str(models[0]), compile=True), deep_features_every=2)
    with pytest.raises(UserError, match="compile does not work with low memory"):
        made_by(ModelOptions(str(models[0]), compile=True, low_memory=True))


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{}, {"deep_features_every": 2}])
def test_openvino_makes_the_images_of_the_command_with_openvino(
    models: list[Path], tmp_path: Path, settings: dict[str, Any]
) -> None:
    pytest.importorskip("openvino")
    more = [text for name, value in settings.items() for text in (f"--{name.replace('_', '-')}", value)]
    data = wanted(models[0], tmp_path, "--height", 16, "--width", 16, "--engine", "openvino", *more)
    assert made_by(ModelOptions(str(models[0]), engine="openvino"), **settings) == data
    assert made_by(ModelOptions(str(models[0])), **settings) != data

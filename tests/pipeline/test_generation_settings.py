"""`GenerationSettings`: a setting is added in one place and found everywhere; layers; what is refused."""

import inspect
import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pytest
import torch
import typer
from PIL import Image
from pydantic import Field
from typer.testing import CliRunner

from ldm.cli.options import setting_options
from ldm.errors import UserError
from ldm.generation.prompts import read_prompts
from ldm.io.files import write_json
from ldm.models.generation_settings import GenerationSettings, Setting, settings_of
from ldm.models.loading.folder import read_defaults
from ldm.models.settings_as_arguments import keyword_parameters, spell_out
from ldm.models.settings_reading import parse_settings
from ldm.pipeline.pipeline import Pipeline
from ldm.pipeline.record import read_record, read_settings, write_png
from tests.support.tiny_models import make_sd1


class WithSharpness(GenerationSettings):
    """A made-up setting, added in one place."""

    sharpness: Annotated[float, Setting("S", model_default=True, infotext="Sharpness")] = Field(
        0.5, ge=0, le=2, strict=True, description="How sharp the edges are."
    )


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    return Pipeline(make_sd1(tmp_path_factory.mktemp("tokenizer")))


# A made-up setting


def command(given: list[dict[str, Any]]) -> typer.Typer:
    """A command with the options of `WithSharpness`."""

    def draw(**settings: Any) -> None:
        given.append(settings)

    app = typer.Typer(rich_markup_mode=None)
    app.command()(spell_out(draw, setting_options(WithSharpness)))
    return app


def test_a_new_setting_is_an_option_with_help_and_a_range() -> None:
    given: list[dict[str, Any]] = []
    app, runner = command(given), CliRunner()
    shown = " ".join(runner.invoke(app, ["--help"]).stdout.split())
    assert "--sharpness S How sharp the edges are. [default: the model's own] [0<=x<=2]" in shown
    assert runner.invoke(app, ["--sharpness", "1.5", "--no-karras"]).exit_code == 0
    assert parse_settings(given[0], WithSharpness) == WithSharpness(sharpness=1.5, karras=False)
    refused = runner.invoke(app, ["--sharpness", "3"])
    assert refused.exit_code == 2 and "--sharpness" in refused.stderr
    assert runner.invoke(app, []).exit_code == 0
    assert parse_settings(given[1], WithSharpness).given() == {}


def test_a_new_setting_is_a_key_of_prompt_files(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "a", "sharpness": 1}\n{"prompt": "b", "sharpness": 3}')
    with pytest.raises(UserError, match=r"line 2: sharpness is 3: it must be a number from 0 to 2"):
        read_prompts(path, WithSharpness)
    path.write_text('{"prompt": "a", "sharpness": 1}')
    (prompt,) = read_prompts(path, WithSharpness)
    assert prompt.settings.given() == {"sharpness": 1.0}
    with pytest.raises(UserError, match="unknown setting 'sharpness'"):
        read_prompts(path)


def test_a_new_setting_is_an_argument_and_is_checked(pipeline: Pipeline) -> None:
    made = pipeline.generate("a", settings=WithSharpness(), sharpness=1.5, num_inference_steps=1)
    assert made.settings[0]["sharpness"] == 1.5
    assert made.records[0].settings == made.records[0].settings.over(WithSharpness(sharpness=2))
    with pytest.raises(UserError, match=r"sharpness is 3: it must be a number from 0 to 2"):
        pipeline.generate("a", settings=WithSharpness(), sharpness=3)
    names = [each.name for each in keyword_parameters(WithSharpness)]
    assert names[-1] == "sharpness"


def test_a_new_setting_has_a_default_in_ldm_json(tmp_path: Path, pipeline: Pipeline) -> None:
    write_json(tmp_path / "ldm.json", {"defaults": {"height": 16, "width": 16, "sharpness": 2.0}})
    defaults = read_defaults(tmp_path, 16, 16, WithSharpness)
    assert defaults.model_defaults() == {
        **GenerationSettings(height=16, width=16, scheduler="model").model_defaults(),
        "sharpness": 2.0,
    }
    other = Pipeline(pipeline.parts)
    before = other.parts.defaults
    other.parts.defaults = defaults
    try:
        asked = WithSharpness(num_inference_steps=1)
        assert other.generate("a", settings=asked).settings[0]["sharpness"] == 2.0
        assert other.generate("a", settings=asked, sharpness=0.1).settings[0]["sharpness"] == 0.1
    finally:
        other.parts.defaults = before
    write_json(tmp_path / "ldm.json", {"defaults": {"sharpness": 9}})
    with pytest.raises(UserError, match=r"ldm\.json: sharpness is 9"):
        read_defaults(tmp_path, 16, 16, WithSharpness)


def test_a_new_setting_is_in_the_png(tmp_path: Path, pipeline: Pipeline) -> None:
    made = pipeline.generate("a", settings=WithSharpness(sharpness=1.25, num_inference_steps=1))
    (path,) = made.save(tmp_path)
    assert read_settings(path)["sharpness"] == 1.25
    assert read_record(path, WithSharpness) == made.records[0]
    with Image.open(path) as image:
        assert ", Sharpness: 1.25, RNG: CPU" in image.text["parameters"]  # type: ignore[attr-defined]
    again = path.with_name("again.png")
    write_png(again, made.images[0], read_record(path, WithSharpness))
    assert again.read_bytes() == path.read_bytes()


# Layers


def test_layers_win_in_order_and_none_is_left_open() -> None:
    model = GenerationSettings(num_inference_steps=20, guidance_scale=2.0, scheduler="euler")
    options = GenerationSettings(guidance_scale=None, scheduler="ddim", seed=3)
    own = GenerationSettings(seed=4)
    assert own.over(options).over(model).given() == {
        "num_inference_steps": 20,
        "guidance_scale": 2.0,
        "scheduler": "ddim",
        "seed": 4,
    }


def test_a_setting_equal_to_the_default_still_wins() -> None:
    default = GenerationSettings().num_inference_steps
    model = GenerationSettings(num_inference_steps=default + 5)
    assert GenerationSettings().over(model).num_inference_steps == default + 5
    assert GenerationSettings(num_inference_steps=default).over(model).num_inference_steps == default


def test_a_presets_settings_lose_to_those_named_beside_it() -> None:
    made = GenerationSettings(preset="fast", deep_features_every=2)
    assert made.given() == {"guidance_interval": (0.0, 0.5), "deep_features_every": 2}


def test_numbers_of_numpy_and_torch_are_plain_numbers() -> None:
    made = GenerationSettings(
        seed=np.int64(3), guidance_scale=torch.tensor(2.5), guidance_interval=np.array([0, 0.5])
    )
    assert json.loads(json.dumps(made.given())) == {
        "seed": 3,
        "guidance_scale": 2.5,
        "guidance_interval": [0, 0.5],
    }


# Errors


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"guidence_scale": 3}, "unknown setting 'guidence_scale': did you mean 'guidance_scale'"),
        ({"steps": 3}, "unknown setting 'steps': did you mean 'num_inference_steps'"),
        ({"cfg": 3}, "unknown setting 'cfg': did you mean 'guidance_scale'"),
        ({"sampler": "euler"}, "unknown setting 'sampler': did you mean 'scheduler'"),
        ({"seed": True}, "seed is True: it must be a whole number from 0 to"),
        ({"height": "16"}, "height is '16': it must be a whole number from 1 to 16384"),
        ({"guidance_scale": float("inf")}, "guidance_scale is inf: it must be a finite number of at least 0"),
        ({"karras": 1}, "karras is 1: it must be true or false"),
        ({"scheduler": 3}, "scheduler is 3: it must be text"),
        (
            {"guidance_interval": [0.5]},
            r"guidance_interval is \[0.5\]: it must be a list of two finite numbers",
        ),
        ({"guidance_interval": [0.5, 3]}, "guidance_interval is 0.5 3: give increasing fractions"),
        ({"negative_prompt": "a\0b"}, r"contains the character U\+0000: remove it"),
        ({"preset": "fats"}, "unknown preset 'fats': did you mean 'fast'"),
    ],
)
def test_a_python_call_is_refused_in_a_line(pipeline: Pipeline, given: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        pipeline.generate("a", **given)


def test_help_names_every_setting_of_the_python_call() -> None:
    parameters = inspect.signature(Pipeline.generate).parameters
    assert set(GenerationSettings.model_fields) < set(parameters)
    assert all(parameters[name].default is None for name in GenerationSettings.model_fields)


def test_every_setting_says_what_it_is() -> None:
    for name, setting in settings_of(GenerationSettings):
        field = GenerationSettings.model_fields[name]
        assert field.description and field.description.endswith("."), name
        assert setting.metavar or field.annotation is bool, name

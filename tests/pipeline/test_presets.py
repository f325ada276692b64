"""Presets of `ldm generate`: the settings they stand for, what wins over them, and reproducing their images."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from ldm.cli.app import app
from ldm.errors import UserError
from ldm.generation.prompts import read_prompts
from ldm.models.loading import source as model_source
from ldm.pipeline.pipeline import Pipeline
from ldm.pipeline.record import read_settings
from ldm.pipeline.settings import PRESETS, GenerationSettings
from tests.support.tiny_generate import save_model
from tests.support.tiny_models import make_sd1

FAST = {"guidance_interval": [0.0, 0.5], "deep_features_every": 3}
FULL = {"guidance_interval": [0.0, 1.0], "deep_features_every": 1}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("models"))


@pytest.fixture(autouse=True)
def place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, model: Path) -> None:
    """Every test works in its own folder, and `emoji` is a tiny model."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(model_source.EMBEDDED, "emoji", model)


def generate(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["generate", *map(str, arguments)])


def made(*arguments: object) -> tuple[dict[str, Any], np.ndarray[Any, Any]]:
    """The settings that a preset changes and the pixels [H, W, 3] of the one image that a call makes."""
    result = generate(*arguments, "--overwrite")
    assert (result.exit_code, result.stderr) == (0, "")
    (path,) = result.stdout.splitlines()
    with Image.open(path) as image:
        return {key: read_settings(path)[key] for key in FAST}, np.asarray(image).astype(int)


def test_without_a_preset_nothing_is_skipped() -> None:
    settings, pixels = made("a red apple")
    assert settings == FULL
    assert (made("a red apple", "--preset", "full")[1] == pixels).all()


def test_a_preset_is_its_settings_and_its_image_is_reproduced() -> None:
    settings, pixels = made("a red apple", "--preset", "fast")
    assert settings == FAST
    spelled_out = ("--guidance-interval", 0, 0.5, "--deep-features-every", 3)
    assert (made("a red apple", *spelled_out)[1] == pixels).all()
    again = made("--reproduce", "outputs/0001-a-red-apple-s0.png", "--output", "again")
    assert again[0] == FAST
    assert (again[1] == pixels).all()
    undone = made("--reproduce", "outputs/0001-a-red-apple-s0.png", "--preset", "full")
    assert undone[0] == FULL
    assert (undone[1] == made("a red apple", "--output", "plain")[1]).all()
    assert (undone[1] != pixels).any()


def test_an_option_beside_a_preset_wins() -> None:
    settings, _ = made("a", "--preset", "fast", "--guidance-interval", 5, 0.3)
    assert settings == {"guidance_interval": [5.0, 0.3], "deep_features_every": 3}


def test_a_line_of_a_file_may_name_one(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    lines = [
        '{"prompt": "a", "preset": "fast"}',
        '{"prompt": "b", "preset": "fast", "deep_features_every": 2}',
    ]
    path.write_text("\n".join([*lines, '{"prompt": "c", "guidance_interval": [0.2, 0.6], "preset": null}']))
    first, second, third = read_prompts(path)
    assert first.settings.given() == {"guidance_interval": (0.0, 0.5), "deep_features_every": 3}
    assert second.settings.given() == {"guidance_interval": (0.0, 0.5), "deep_features_every": 2}
    assert third.settings.given() == {"guidance_interval": (0.2, 0.6)}
    assert first.over(GenerationSettings(deep_features_every=5)) == first


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--preset", "fats"], "unknown preset 'fats': did you mean 'fast'"),
        (["--guidance-interval", "0.3", "5"], "guidance_interval is 0.3 5"),
        (["--guidance-interval", "nan", "5"], "finite"),
        (["--deep-features-every", "0"], "deep-features-every"),
    ],
)
def test_errors_are_one_line(options: list[str], said: str) -> None:
    result = generate("a", *options)
    assert result.exit_code == 2
    assert said in result.stderr
    assert not Path("outputs").exists()


def test_a_file_line_with_a_wrong_preset_is_named(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "a", "preset": ["fast"]}')
    with pytest.raises(UserError, match=r"prompts.jsonl, line 1.*unknown preset"):
        read_prompts(path)


def test_the_help_names_every_preset() -> None:
    shown = " ".join(generate("--help").stdout.split())
    assert all(f"{name}:" in shown for name in PRESETS)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_arguments_of_the_pipeline(name: str, model: Path) -> None:
    pipeline = Pipeline(make_sd1(model.parent / "tokenizer"))
    settings = pipeline.generate("a", **PRESETS[name]).settings[0]
    assert settings["deep_features_every"] == PRESETS[name]["deep_features_every"]
    assert tuple(settings["guidance_interval"]) == PRESETS[name]["guidance_interval"]

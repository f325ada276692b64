"""Numbers beyond any machine, in a record or in options, are refused in one line before anything is made."""

from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from ldm.cli.app import app
from ldm.errors import UserError
from ldm.generation.reproduce import read_original
from ldm.models.generation_settings import GenerationSettings
from ldm.models.loading import source as model_source
from ldm.models.loading.folder import weights_hash
from ldm.pipeline.batches import Prompt, list_images
from ldm.pipeline.record import ImageRecord, write_png
from tests.support.tiny_generate import save_model

HUGE = (10**9, 2**63, 2**64, 10**30)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(model_source.EMBEDDED, "emoji", model)


def refused(*arguments: object) -> str:
    """The one-line error of `ldm generate`, which has written nothing."""
    before = sorted(Path().rglob("*"))
    done = CliRunner().invoke(app, ["generate", *map(str, arguments)])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    assert (done.exit_code, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert sorted(Path().rglob("*")) == before
    return line.removeprefix("error: ")


def write(**changes: Any) -> Path:
    """A PNG whose record is ours but for some numbers."""
    record = ImageRecord(prompt="a", seed=1, settings=GenerationSettings(), model_id="emoji")
    write_png(Path("a.png"), Image.new("RGB", (4, 4)), {**record.to_json(), **changes})
    return Path("a.png")


@pytest.mark.parametrize("number", HUGE)
@pytest.mark.parametrize("key", ["height", "width", "num_inference_steps", "max_prompt_chunks", "seed"])
def test_a_record_with_a_huge_number_is_refused(key: str, number: int) -> None:
    path = write(**{key: number})
    if (key, number) == ("seed", 10**9):
        assert read_original(path).prompt.settings.seed == number
        return
    with pytest.raises(UserError) as caught:
        _ = read_original(path).prompt
    assert "\n" not in str(caught.value) and key in str(caught.value) and "a.png" in str(caught.value)


@pytest.mark.parametrize("number", HUGE)
def test_a_record_does_not_say_how_many_images_are_made(number: int) -> None:
    """The PNG is one image, whatever its record says."""
    assert len(list_images([read_original(write(num_images=number)).prompt])) == 1


@pytest.mark.parametrize("number", HUGE)
@pytest.mark.parametrize("option", ["--height", "--width", "--num-images", "--num-inference-steps"])
def test_an_option_with_a_huge_number_is_refused(option: str, number: int) -> None:
    assert option in refused("a", option, number)


@pytest.mark.parametrize(
    "asked", [["a", "--height", 8192, "--width", 8192], ["--reproduce", "a.png", "--model", "emoji"]]
)
def test_an_image_beyond_the_memory_is_refused_with_both_amounts(
    asked: list[Any], model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(height=8192, width=8192, weights_hash=weights_hash(model))
    monkeypatch.setattr("ldm.io.memory.free_memory_bytes", lambda: 1e9)
    line = refused(*asked)
    assert "8192 x 8192" in line and "1.0 GB" in line


def test_more_images_than_fit_are_refused_with_both_amounts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ldm.io.memory.free_memory_bytes", lambda: 1e8)
    with pytest.raises(
        UserError, match=r"a list of 1,000,000 images needs about 0\.5 GB .* 0\.1 GB are free"
    ):
        list_images([Prompt("a", GenerationSettings(num_images=1_000_000))])

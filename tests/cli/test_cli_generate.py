"""`ldm generate`: the images, their names and settings, from tiny real models."""

import json
import os
import runpy
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from ldm import load_pipeline
from ldm.cli.app import app
from ldm.models.loading import source as model_source
from ldm.pipeline.batches import Batch
from ldm.pipeline.pipeline import Pipeline
from ldm.pipeline.record import read_settings, write_png
from tests.support.tiny_models import make_sd1, make_sd2

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two saved models, `one` (epsilon) and `two` (v-prediction)."""
    folder = tmp_path_factory.mktemp("models")
    for name, make in (("one", make_sd1), ("two", make_sd2)):
        Pipeline(make(tmp_path_factory.mktemp("tokenizer"))).save(folder / name)
    return folder


@pytest.fixture(autouse=True)
def place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, models: Path) -> None:
    """Every test works in its own folder, and `emoji` is a tiny model."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(model_source.EMBEDDED, "emoji", models / "one")


def generate(*arguments: object) -> Result:
    result = CliRunner().invoke(app, ["generate", *map(str, arguments)])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def made(*arguments: object) -> list[Path]:
    """The paths that a successful call prints."""
    result = generate(*arguments)
    assert (result.exit_code, result.stderr) == (0, "")
    return [Path(line) for line in result.stdout.splitlines()]


def pixels(path: Path) -> np.ndarray[Any, Any]:
    """[H, W, 3]"""
    with Image.open(path) as image:
        return np.asarray(image).astype(int)


def test_images_are_those_of_the_api_with_their_settings_inside() -> None:
    paths = made("a red apple", "blue / square", "--seed", 7, "--num-images", 2)
    assert [str(path) for path in paths] == [
        "outputs/0001-a-red-apple-s7.png",
        "outputs/0002-a-red-apple-s8.png",
        "outputs/0003-blue-square-s7.png",
        "outputs/0004-blue-square-s8.png",
    ]
    assert sorted(Path("outputs").iterdir()) == paths
    expected = load_pipeline().generate(["a red apple", "blue / square"], seed=7, num_images=2)
    for path, image, settings in zip(paths, expected.images, expected.settings, strict=True):
        assert (pixels(path) == np.asarray(image)).all()
        assert read_settings(path) == settings
        assert settings["model_id"] == "emoji"
        assert settings["num_inference_steps"] == 4  # the model's own default


def test_every_option_reaches_the_image(models: Path) -> None:
    options = {
        "num-inference-steps": 3,
        "guidance-scale": 2.5,
        "guidance-rescale": 0.5,
        "negative-prompt": "blue",
        "scheduler": "euler",
        "height": 24,
        "width": 8,
        "dtype": "bfloat16",
    }
    arguments = [str(part) for name, value in options.items() for part in (f"--{name}", value)]
    (path,) = made(
        "red", *arguments, "--karras", "--device", "cpu", "--model", models / "two", "--output", "x/y"
    )
    settings = read_settings(path)
    assert path.parent == Path("x/y")
    assert {name: settings[name.replace("-", "_")] for name in options} == options
    assert (settings["karras"], settings["model_id"]) == (True, "two")
    assert pixels(path).shape == (24, 8, 3)


def test_a_prompt_file_with_its_own_settings_in_the_order_of_the_input() -> None:
    rows: list[dict[str, Any]] = [
        {"prompt": "b", "seed": 5, "num_images": 2},
        {"prompt": "c", "scheduler": "euler_a"},
        {"prompt": "d"},
        {"prompt": "e", "scheduler": "euler_a", "height": 8},
        {"prompt": "f", "scheduler": "euler_a"},
    ]
    Path("prompts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    paths = made("a", "--prompts", "prompts.jsonl", "--seed", 3, "--scheduler", "ddim")
    found = [read_settings(path) for path in paths]
    summary = [(s["prompt"], s["seed"], s["scheduler"], s["height"]) for s in found]
    assert summary == [
        ("a", 3, "ddim", 16),
        ("b", 5, "ddim", 16),
        ("b", 6, "ddim", 16),
        ("c", 3, "euler_a", 16),
        ("d", 3, "ddim", 16),
        ("e", 3, "euler_a", 8),
        ("f", 3, "euler_a", 16),
    ]
    (alone,) = made("f", "--seed", 3, "--scheduler", "euler_a", "--output", "alone")
    assert np.abs(pixels(alone) - pixels(paths[-1])).max() <= 1


def test_names_and_pixels_do_not_depend_on_the_batch_size() -> None:
    one, three = (
        made("a", "b", "--num-images", 2, "--batch-size", size, "--output", f"by-{size}") for size in (1, 3)
    )
    assert [path.name for path in one] == [path.name for path in three]
    assert all(np.abs(pixels(a) - pixels(b)).max() <= 1 for a, b in zip(one, three, strict=True))


def test_the_grid_shows_all_images_in_order() -> None:
    *paths, grid = made("a", "b", "--num-images", 2, "--seed", 1, "--grid", "--batch-size", 3)
    assert grid == Path("outputs/grid.png")
    corners = [(2, 2), (20, 2), (2, 20), (20, 20)]
    for path, (left, top) in zip(paths, corners, strict=True):
        assert (pixels(grid)[top : top + 16, left : left + 16] == pixels(path)).all()


def test_low_memory_makes_the_same_images_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = made("a", "b", "--output", "usual")
    sizes = []
    make = Pipeline.make_images

    def counting(self: Pipeline, groups: list[Batch], **options: Any) -> Any:
        assert self.low_memory
        sizes.extend(map(len, groups))
        return make(self, groups, **options)

    monkeypatch.setattr(Pipeline, "make_images", counting)
    low = made("a", "b", "--output", "low", "--low-memory")
    assert sizes == [1, 1]
    assert all(np.abs(pixels(a) - pixels(b)).max() <= 1 for a, b in zip(usual, low, strict=True))


def test_an_existing_image_is_refused_before_the_model_is_looked_up() -> None:
    (path,) = made("a", "--seed", 0)
    before = path.read_bytes()
    result = generate("a", "--seed", 0, "--model", "absent")
    assert (result.exit_code, result.stdout) == (2, "")
    hint = "add --overwrite, or --resume to keep it, or give another --output"
    assert result.stderr == f"error: {path} exists already: {hint}\n"
    (again,) = made("a", "--seed", 0, "--overwrite", "--num-inference-steps", 2)
    assert again == path
    assert path.read_bytes() != before


def test_reproduce_makes_the_same_file(models: Path) -> None:
    options = [
        "--seed",
        4,
        "--num-images",
        2,
        "--scheduler",
        "euler_a",
        "--negative-prompt",
        "b",
        "--no-karras",
    ]
    _, path = made("a", *options, "--guidance-scale", 3, "--dtype", "bfloat16", "--height", 24)
    (again,) = made("--reproduce", path, "--output", "again")
    assert again.name == "0001-a-s5.png"
    assert again.read_bytes() == path.read_bytes()
    (other,) = made("b", "--reproduce", path, "--seed", 1, "--height", 16, "--output", "other")
    changed = {"prompt": "b", "seed": 1, "height": 16}
    assert read_settings(other) == {**read_settings(path), **changed}


def test_reproduce_asks_for_a_model_in_a_folder(models: Path) -> None:
    (path,) = made("a", "--model", models / "one")
    result = generate("--reproduce", path, "--output", "again")
    assert result.exit_code == 2
    assert "in a folder called 'one': say where it is with --model" in result.stderr
    (again,) = made("--reproduce", path, "--output", "again", "--model", models / "one")
    assert again.read_bytes() == path.read_bytes()


def test_reproduce_with_other_weights(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (path,) = made("a")
    monkeypatch.setitem(model_source.EMBEDDED, "emoji", models / "two")
    refused = generate("--reproduce", path, "--output", "again")
    assert refused.exit_code == 2
    assert "made with other weights" in refused.stderr
    assert "--model" in refused.stderr
    assert not Path("again").exists()
    warned = generate("--reproduce", path, "--output", "again", "--model", "emoji")
    assert warned.exit_code == 0
    assert warned.stderr.startswith(f"warning: {path} was made with other weights")


def test_the_old_name_of_reproduce_works_and_says_so() -> None:
    (path,) = made("a")
    result = generate("--from-image", path, "--output", "again")
    assert (result.exit_code, result.stdout) == (0, "again/0001-a-s0.png\n")
    assert result.stderr == "warning: --from-image is now called --reproduce\n"
    assert Path("again/0001-a-s0.png").read_bytes() == path.read_bytes()
    assert "--from-image" not in generate("--help").stdout


def test_reproduce_without_recorded_weights_is_refused() -> None:
    write_png("x.png", Image.new("RGB", (16, 16)), {"prompt": "a", "model_id": "emoji", "weights_hash": None})
    assert generate("--reproduce", "x.png").exit_code == 2


def test_a_prompt_that_is_too_long_gives_one_warning_with_the_words_left_out() -> None:
    prompt = "a red apple on a table " * 3 + "beside a zebra"
    result = generate(prompt, "--num-images", 3, "--batch-size", 1)
    assert result.exit_code == 0
    (line,) = result.stderr.splitlines()
    assert line.startswith("warning: ")
    assert line.endswith("beside a zebra'")


def test_a_negative_prompt_without_guidance_gives_a_warning() -> None:
    result = generate("a", "--negative-prompt", "b", "--guidance-scale", 1)
    assert result.exit_code == 0
    (line,) = result.stderr.splitlines()
    assert line.startswith("warning: the negative prompt is not used with guidance_scale 1")


def test_max_prompt_chunks_reads_the_rest_of_a_long_prompt() -> None:
    prompt = "a red apple on a table " * 3 + "beside a zebra"
    result = generate(prompt, "--max-prompt-chunks", 3)
    assert (result.exit_code, result.stderr) == (0, "")
    assert read_settings(result.stdout.strip())["max_prompt_chunks"] == 3


def test_an_odd_size_gives_a_warning_with_the_size_it_becomes() -> None:
    result = generate("a", "--height", 17)
    assert result.exit_code == 0
    assert "warning: height 17 is rounded to 18" in result.stderr
    assert pixels(Path(result.stdout.strip())).shape == (18, 16, 3)


def test_an_empty_prompt_is_a_prompt() -> None:
    (path,) = made("")
    assert read_settings(path)["prompt"] == ""


def test_the_schedulers_are_listed_with_what_they_need(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchsde", None)
    monkeypatch.setattr("ldm.diffusion.scheduler_names.find_spec", lambda name: None)
    lines = {line.split()[0]: line for line in generate("--scheduler", "list").stdout.splitlines()}
    assert {"ddpm", "ddim", "euler", "heun", "dpmpp_2m", "unipc", "pndm", "lms"} <= set(lines)
    assert lines["euler"].split() == ["euler", "Euler"]
    assert "not usable here: needs torchsde (pip install torchsde)" in lines["dpmpp_sde"]
    assert "pip install torchsde" in generate("a", "--scheduler", "dpmpp_sde").stderr


def test_ctrl_c_keeps_what_is_done_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    make = Pipeline.make_images

    def interrupted(self: Pipeline, groups: list[Batch], **options: Any) -> Any:
        for made in make(self, groups, **options):
            if made.request.prompt == "b":
                signal.raise_signal(signal.SIGINT)
            yield made

    monkeypatch.setattr(Pipeline, "make_images", interrupted)
    result = generate("a", "b", "c", "--batch-size", 1)
    assert (result.exit_code, result.stdout) == (130, "")
    assert result.stderr == "stopped; 1 of 3 images written to outputs\n"
    assert [path.name for path in Path("outputs").iterdir()] == ["0001-a-s0.png"]


def test_a_real_process_prints_the_path_alone(models: Path) -> None:
    command = [sys.executable, "-m", "ldm", "generate", "a red apple", "--model", str(models / "one")]
    variables = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=variables)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "outputs/0001-a-red-apple-s0.png\n"
    assert pixels(Path(done.stdout.strip())).shape == (16, 16, 3)


def test_the_script_does_the_same_through_the_api(
    models: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = ROOT / "scripts" / "generate.py"
    assert len(script.read_text().splitlines()) < 40
    arguments = [str(script), "a", "--model", str(models / "one"), "--seed", "7", "--num-images", "2"]
    monkeypatch.setattr(sys, "argv", arguments)
    runpy.run_path(str(script), run_name="__main__")
    printed = capsys.readouterr().out.splitlines()
    assert printed == ["outputs/7.png", "outputs/8.png"]
    (_, by_command) = made("a", "--seed", 7, "--num-images", 2, "--model", models / "one", "--output", "cli")
    assert (pixels(Path(printed[1])) == pixels(by_command)).all()

"""What `ldm generate`, `ldm train` and `ldm info` refuse: one line that names the mistake and the fix, exit code
2, no partial output. Images and folders of images have separate tests.
"""

import json
import os
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from ldm.cli.app import app
from ldm.models.loading import source as model_source
from ldm.pipeline.pipeline import Pipeline
from ldm.pipeline.record import read_settings, write_png
from tests.support.tiny_models import ZERO_SNR_SCHEDULER, make_sd1, make_sd2
from tests.support.tiny_runs import AUTOENCODER, write_config
from train.autoencoder import main as train_autoencoder


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two saved models: `good`, and `zero-snr` with zero terminal SNR."""
    folder = tmp_path_factory.mktemp("models")
    Pipeline(make_sd1(tmp_path_factory.mktemp("tokenizer"))).save(folder / "good")
    zero_snr = make_sd2(tmp_path_factory.mktemp("tokenizer"), ZERO_SNR_SCHEDULER)
    Pipeline(zero_snr).save(folder / "zero-snr")
    return folder


@pytest.fixture(autouse=True)
def model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, models: Path) -> Path:
    """A copy of the model as `model` in the working folder; the name `emoji` also refers to it."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(models / "good", tmp_path / "model")
    monkeypatch.setitem(model_source.EMBEDDED, "emoji", tmp_path / "model")
    return tmp_path / "model"


def files_here() -> list[str]:
    return sorted(str(path) for path in Path().rglob("*"))


def refused(*arguments: object) -> str:
    """The one-line error of a command, which must leave no file behind."""
    before = files_here()
    result = CliRunner().invoke(app, list(map(str, arguments)))
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert (result.exit_code, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert files_here() == before
    return line.removeprefix("error: ")


def assert_words(line: str, *words: str) -> None:
    assert not [word for word in words if word not in line], line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["no prompt", 'ldm generate "a red apple"']),
        (["a", "--scheduler", "dpmp_2m"], ["'dpmp_2m'", "did you mean 'dpmpp_2m'", "euler_a"]),
        (["a", "--scheduler", "ddpm", "--karras"], ["'ddpm' has no Karras", "euler"]),
        (["a", "--model", "nobody/nothing"], ["'nobody/nothing'", "network"]),
        (["a", "--model", "absent"], ["no model 'absent'", "emoji"]),
        (["a", "--model", "."], ["is not a model folder", "model_index.json"]),
        (["a", "--model", "model/model_index.json"], ["model_index.json is a file", "folder"]),
        (["a", "--dtype", "float61"], ["unknown dtype 'float61'", "float16"]),
        (["a", "--device", "gpu"], ["'gpu'", "cpu"]),
        (["a", "--guidance-scale", "nan"], ["--guidance-scale", "ldm generate --help"]),
        (["a", "--guidance-scale", "-1"], ["--guidance-scale", "ldm generate --help"]),
        (["a", "--model", ""], ["no model ''", "emoji"]),
        (["a\0b"], ["the character U+0000"]),
        (["a", "--max-prompt-chunks", "4"], ["--max-prompt-chunks", "equal to 3"]),
        (["--prompts", "."], ["Is a directory", "name a file"]),
        (["a", "--num-inference-steps", "1001"], ["1001", "1 to 1000"]),
        (["a", "--seed", str(2**63)], ["seed", str(2**63)]),
        (["a", "--seed", str(2**63 - 1), "--num-images", "2"], ["seed", str(2**63 - 1)]),
        (["a\udcff"], ["not valid Unicode", "UTF-8"]),
        (["a", "--seed", "x"], ["--seed", "ldm generate --help"]),
        (["a", "--num-images", "0"], ["--num-images", "ldm generate --help"]),
        (["a", "--guidance-rescale", "1.5"], ["--guidance-rescale"]),
        (["a", "--sed", "3"], ["--sed", "--seed"]),
        (["a", "--prompts", "absent.txt"], ["absent.txt"]),
        (["--reproduce", "absent.png"], ["absent.png", "no such file"]),
    ],
)
def test_generate_refuses(arguments: list[str], words: list[str]) -> None:
    assert_words(refused("generate", *arguments), *words)


def test_a_scheduler_that_ignores_zero_snr(models: Path) -> None:
    line = refused("generate", "a", "--model", models / "zero-snr", "--scheduler", "heun")
    assert_words(line, "'heun'", "zero terminal SNR", "use ", "ddim")


def test_a_prompt_file_that_is_not_utf8() -> None:
    Path("prompts.txt").write_bytes("ein Apfel\nein großer Apfel".encode("latin-1"))
    assert_words(refused("generate", "--prompts", "prompts.txt"), "prompts.txt, line 2", "byte 17", "UTF-8")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[" * 100_000, ["prompts.jsonl, line 1", "not JSON"]),
        ('{"prompt": "a", "seed": true}', ["prompts.jsonl, line 1", "seed is True"]),
    ],
)
def test_an_odd_line_in_a_prompt_file(text: str, words: list[str]) -> None:
    Path("prompts.jsonl").write_text(text)
    assert_words(refused("generate", "--prompts", "prompts.jsonl"), *words)


@pytest.mark.parametrize("option", ["--public", "--create-pr", "--yes", "--revision=main"])
def test_push_options_without_a_push(option: str) -> None:
    line = refused("export", "model", "dest", option)
    assert_words(line, f"{option.partition('=')[0]} without --push-to-hub", "--push-to-hub USER/NAME")


def test_pruning_a_missing_cache() -> None:
    assert_words(refused("data", "prune", "--folder", "absent", "--max-gb", "1"), "--folder absent")


def test_a_report_that_is_a_file() -> None:
    Path("data").mkdir()
    Path("report.html").touch()
    assert_words(refused("data", "check", "data", "--report", "report.html"), "report.html is a file")


def test_a_configuration_on_proc(tmp_path: Path) -> None:
    Path("data").mkdir()
    Image.new("RGB", (64, 64)).save("data/a.png")
    Path("data/a.txt").write_text("a square")
    line = refused("init", "data", "--base", "emoji", "--output", "/proc/data.yaml")
    assert_words(line, "/proc/data.yaml cannot be written", "choose another place")


@pytest.mark.parametrize("command", [["generate", "a", "--model"], ["info"]])
def test_an_unfinished_run(command: list[str]) -> None:
    Path("run/checkpoints/step-000003").mkdir(parents=True)
    assert_words(refused(*command, "run"), "run is a run that has not finished", "ldm export run")
    step = "run/checkpoints/step-000003"
    line = refused(*command, step)
    assert_words(line, f"{step} is a checkpoint of a training run", f"ldm export {step}")
    assert "the run's result" not in line
    Path("run/pipeline").mkdir()
    assert_words(refused(*command, step), f"{step} is a checkpoint of a training run", "the run's result is")


@pytest.mark.parametrize(
    ("option", "meant"),
    [
        ("--steps", ": did you mean --num-inference-steps?"),
        ("--cfg", ": did you mean --guidance-scale?"),
        ("--sampler", ": did you mean --scheduler?"),
        ("--batch", ": did you mean --batch-size?"),
        ("--hieght", ": did you mean --height?"),
        ("--zzz", " (see ldm generate --help)"),
    ],
)
def test_an_unknown_option(option: str, meant: str) -> None:
    assert f"No such option: {option}{meant}" in refused("generate", "a", option, "3")


def test_a_lora_as_a_model() -> None:
    Path("lora").mkdir()
    Path("lora/pytorch_lora_weights.safetensors").touch()
    assert_words(refused("generate", "a", "--model", "lora"), "lora holds a LoRA", "--lora lora")


def test_a_mistyped_setting_in_a_prompt_file() -> None:
    Path("prompts.jsonl").write_text(json.dumps({"prompt": "a", "guidence_scale": 3}))
    line = refused("generate", "--prompts", "prompts.jsonl")
    assert_words(line, "prompts.jsonl, line 1", "'guidence_scale'", "did you mean 'guidance_scale'")


@pytest.mark.parametrize("suffix", [".bin", ".pt", ".ckpt"])
@pytest.mark.parametrize("command", [["generate", "a", "--model"], ["info"]])
def test_a_model_of_pickles(command: list[str], suffix: str) -> None:
    Path("model/unet/diffusion_pytorch_model.safetensors").rename(f"model/unet/weights{suffix}")
    assert_words(refused(*command, "model"), f"weights{suffix} is a pickle", "safetensors")


@pytest.mark.parametrize("command", [["generate", "a", "--model"], ["info"]])
def test_a_truncated_model(command: list[str]) -> None:
    os.truncate("model/unet/diffusion_pytorch_model.safetensors", 1000)
    assert_words(refused(*command, "model"), "unet")


def test_a_model_with_a_mistyped_default() -> None:
    Path("model/ldm.json").write_text(json.dumps({"defaults": {"guidence_scale": 3.0}}))
    assert_words(refused("generate", "a"), "ldm.json", "'guidence_scale'", "did you mean 'guidance_scale'")


@pytest.mark.parametrize("output", ["file", "file/below"])
def test_an_output_that_is_not_a_folder(output: str) -> None:
    Path("file").touch()
    assert_words(refused("generate", "a", "--output", output), "file is a file", "--output")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_output_without_permission() -> None:
    Path("locked").mkdir(mode=0o500)
    assert_words(refused("generate", "a", "--output", "locked"), "locked", "choose another place")


def test_an_output_on_a_system_folder() -> None:
    assert_words(refused("generate", "a", "--output", "/proc/pictures"), "/proc/pictures")


@pytest.mark.parametrize("name", ["0002-a-s1.png", "grid.png"])
def test_an_output_that_exists(name: str) -> None:
    Path("outputs").mkdir()
    Path("outputs", name).write_text("mine")
    line = refused("generate", "a", "--seed", "0", "--num-images", "2", "--grid", "--model", "absent")
    assert_words(line, f"outputs/{name} exists already", "--overwrite", "--output")
    assert Path("outputs", name).read_text() == "mine"


@contextmanager
def file_size_limit(num_bytes: int) -> Iterator[None]:
    """Simulate a full disk: no file can grow beyond a size."""
    former = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, former[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, former)


def test_a_full_disk() -> None:
    Path("outputs").mkdir()
    with file_size_limit(400):
        line = refused("generate", "a")
    assert_words(line, "outputs/0001-a-s0.png: the disk is full", "free some space")


@pytest.mark.parametrize("content", [b"", b"not a picture", None])
def test_from_an_image_without_settings(content: bytes | None) -> None:
    Image.new("RGB", (4, 4)).save("x.png")
    if content is not None:
        Path("x.png").write_bytes(content)
    assert_words(refused("generate", "--reproduce", "x.png"), "x.png")
    assert_words(refused("info", "x.png"), "x.png")


@pytest.mark.parametrize("change", [{"scheduler": "eular"}, {"seed": "seven"}, {"prompt": None}])
def test_from_an_image_with_wrong_settings(change: dict[str, Any]) -> None:
    write_png("x.png", Image.new("RGB", (4, 4)), {"prompt": "a", "model_id": "emoji", **change})
    assert "x.png" in read_settings("x.png") or change.items() <= read_settings("x.png").items()
    assert_words(refused("generate", "--reproduce", "x.png"), "x.png", next(iter(change)))


@pytest.mark.parametrize("argument", ["nobody/nothing", "absent", "absent.png", "."])
def test_info_refuses(argument: str) -> None:
    assert_words(refused("info", argument), argument)


CONFIG = "program: autoencoder\nrun_dir: run\n"


@pytest.mark.parametrize(
    ("content", "arguments", "words"),
    [
        (CONFIG, ["emoji/autoencodr"], ["'emoji/autoencodr'", "did you mean 'emoji/autoencoder'"]),
        (CONFIG, ["absent.yaml"], ["no configuration 'absent.yaml'"]),
        ("program: denoisr", ["config.yaml"], ["'denoisr'", "did you mean 'denoiser'", "config.yaml"]),
        ("run_dir: run", ["config.yaml"], ["config.yaml has no `program:`", "denoiser"]),
        (CONFIG, ["config.yaml", "program=autoencodr"], ["'autoencodr'", "did you mean 'autoencoder'"]),
        ("[1, 2]", ["config.yaml"], ["config.yaml"]),
        ("a: [", ["config.yaml"], ["config.yaml", "YAML"]),
        (CONFIG, ["config.yaml", "--num-processes", "0"], ["--num-processes"]),
        (CONFIG, ["config.yaml", "--num-proceses", "2"], ["--num-proceses", "--num-processes"]),
    ],
)
def test_train_refuses(content: str, arguments: list[str], words: list[str]) -> None:
    Path("config.yaml").write_text(content)
    assert_words(refused("train", *arguments), *words)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("optim.learning_rat=0.1", ["'optim.learning_rat'", "did you mean 'learning_rate'"]),
        ("optim.learning_rate=fast", ["optim.learning_rate = 'fast'"]),
        ("data.path=absent", ["absent: no such folder"]),
        ("num_steps", ["'num_steps' is not a setting", "key=value"]),
    ],
)
def test_a_training_program_refuses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], override: str, words: list[str]
) -> None:
    """Run in this process; test_cli_train.py tests that `ldm train` passes on exit code and output."""
    config = write_config(tmp_path / "config.yaml", AUTOENCODER, tmp_path / "data", tmp_path / "run")
    assert train_autoencoder([str(config), override]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert_words(line, *words)
    assert not (tmp_path / "run").exists()

"""`ldm init`: the configuration suits the data and model, is commented, and can be trained unchanged."""

import json
import re
from pathlib import Path
from typing import get_args

import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner

from ldm.cli.app import app
from ldm.cli.init import TRAINABLE
from ldm.cli.init_text import Amount, choose_amount, num_prompts
from ldm.config import load_settings, validate
from ldm.data.prepare import DataSettings
from ldm.errors import UserError
from ldm.models.loading.model import save_parts
from tests.support.tiny_models import make_sd1
from train import denoiser
from train.run.trainable import TrainableSettings
from train.settings.denoiser import DenoiserSettings

AWKWARD = "a red: \"apple\" # on 'a' table, 5 % {x} é \U0001f34e"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory with a separate cache, and a tiny model of 16 x 16 pixels in `base`."""
    monkeypatch.setenv("LDM_CACHE_DIR", str(tmp_path / "cache"))
    save_parts(make_sd1(tmp_path / "tokenizer"), tmp_path / "base")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_images(folder: Path, sizes: list[tuple[int, int]], caption: str = "a red apple") -> None:
    folder.mkdir()
    rows = []
    for number, size in enumerate(sizes):
        Image.new("RGB", size, (number % 256, 100, 200)).save(folder / f"{number:03}.png")
        rows.append(json.dumps({"file_name": f"{number:03}.png", "text": caption}))
    (folder / "metadata.jsonl").write_text("\n".join(rows))


def init(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["init", *arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


def refusal(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["init", *arguments])
    assert result.exit_code == 2 and result.stdout == ""
    return result.stderr


def settings_in(path: str) -> DenoiserSettings:
    return load_settings(DenoiserSettings, Path(path))


def test_the_configuration_can_be_planned_and_trained_unchanged(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_images(here / "my photos", [(16, 16)] * 40 + [(30, 16)] * 20, AWKWARD)
    before = {path for path in here.rglob("*") if path.is_file()}
    said = init("my photos", "--base", "base")
    assert said.splitlines()[1:] == ["  ldm train my-photos.yaml --plan", "  ldm train my-photos.yaml"]
    new = {path for path in here.rglob("*") if path.is_file()} - before
    assert {p.name for p in new if "cache/facts" not in p.as_posix()} == {"my-photos.yaml"}
    settings = settings_in("my-photos.yaml")
    assert settings.preview.prompts == (AWKWARD,) and settings.base == "base"
    assert denoiser.main(["my-photos.yaml", "device=cpu", "--plan"]) == 0
    held_out = re.search(r"(\d+) held out, 0 refused", capsys.readouterr().out)
    said_held_out = re.search(r"holdout_fraction: .*# (\d+) images", Path("my-photos.yaml").read_text())
    assert held_out and said_held_out and held_out[1] == said_held_out[1] != "0"
    short = ["num_steps=2", "optim.num_warmup_steps=1", "device=cpu", "preview.num_inference_steps=2"]
    short.append("preview.prompts=[a red apple]")  # the awkward one is too long, which gives a warning
    assert denoiser.main(["my-photos.yaml", *short]) == 0
    assert (here / "runs/my-photos/pipeline/adapter.json").is_file()
    assert init("my photos", "--base", "base", "--output", "b.yaml")
    assert settings_in("b.yaml").run_dir == Path("runs/my-photos-2")


def test_every_line_is_explained(here: Path) -> None:
    write_images(here / "a", [(16, 16)] * 3)
    init("a", "--base", "base")
    lines = [line for line in Path("a.yaml").read_text().splitlines() if line[0] != "#"]
    bare = [line for line in lines if "  # " not in line and not line.strip().startswith("- ")]
    assert len(lines) > 25 and all(re.fullmatch(r"program: denoiser| *\w+:", line) for line in bare), bare


@pytest.mark.parametrize(
    ("sizes", "height", "buckets", "upscale"),
    [
        ([(16, 16)] * 8, 16, False, False),
        ([(64, 64)] * 8, 16, False, False),
        ([(13, 13)] * 8, 12, False, False),
        ([(4, 4)] * 8, 16, False, True),
        ([(48, 24)] * 8, 16, True, False),
        ([(16, 16)] * 24 + [(4, 4)], 16, False, False),
    ],
    ids=["own size", "larger", "smaller", "much smaller", "another shape", "one is bad"],
)
def test_the_size_follows_from_the_model_and_the_images(
    here: Path, sizes: list[tuple[int, int]], height: int, buckets: bool, upscale: bool
) -> None:
    write_images(here / "a", sizes)
    init("a", "--base", "base")
    data = settings_in("a.yaml").data
    assert (data.height, data.width, data.buckets, data.upscale) == (height, height, buckets, upscale)
    assert data.holdout_fraction == 0 and settings_in("a.yaml").validation.every == 0


def test_a_set_with_held_out_images_keeps_the_best_weights_and_may_stop_early(here: Path) -> None:
    write_images(here / "a", [(16, 16)] * 61)
    init("a", "--base", "base")
    settings = settings_in("a.yaml")
    assert settings.data.holdout_fraction == 0.1 and settings.validation.keep_best
    assert (settings.num_steps, settings.validation.every, settings.validation.patience) == (450, 22, 5)
    assert settings.preview.prompts == ("a red apple",)


@pytest.mark.parametrize(
    ("amount", "expected"), [(Amount(20, 4, 300), 1), (Amount(20, 8, 500), 4), (Amount(100, 4, 500), 3)]
)
def test_previews_add_a_tenth_to_a_run(amount: Amount, expected: int) -> None:
    assert num_prompts(amount) == expected


def test_captions_that_need_more_than_the_model_reads_are_counted(here: Path) -> None:
    write_images(here / "a", [(16, 16)] * 3, "a red apple on a table " * 9)
    init("a", "--base", "base")
    text = Path("a.yaml").read_text()
    assert settings_in("a.yaml").prompt_chunks == 1 and "14 tokens; 3 are longer and are cut" in text


def test_all_but_a_controlnet_which_needs_control_images_is_offered() -> None:
    known = get_args(TrainableSettings.model_fields["trainable"].annotation)
    assert {*TRAINABLE, "controlnet"} == set(known)


@pytest.mark.parametrize("trainable", TRAINABLE)
def test_each_kind_of_training_loads(here: Path, trainable: str) -> None:
    write_images(here / "a", [(64, 64)] * 8)
    init("a", "--trainable", trainable)
    settings = settings_in("a.yaml")
    assert (settings.trainable, settings.base, settings.data.height) == (trainable, "emoji", 64)
    assert settings.optim.num_warmup_steps < settings.num_steps
    if trainable == "embedding":
        assert settings.embedding and settings.captions.prefix == settings.embedding.token == "<a>"


@pytest.mark.parametrize(
    ("num_images", "trainable", "expected"),
    [
        (1, "lora", Amount(100, 1, 500)),
        (55, "small lora", Amount(30, 4, 400)),
        (7, "small lora", Amount(30, 4, 200)),
        (1000, "small lora", Amount(30, 16, 1900)),
        (1000, "embedding", Amount(100, 16, 6250)),
        (7, "lora", Amount(100, 4, 500)),
        (120, "lora", Amount(100, 8, 1500)),
        (1000, "lora", Amount(100, 16, 6250)),
        (5000, "unet", Amount(20, 32, 3100)),
        (10**6, "unet", Amount(20, 32, 20_000)),
    ],
)
def test_the_amount_of_training(num_images: int, trainable: str, expected: Amount) -> None:
    kind = trainable.removeprefix("small ")
    assert choose_amount(num_images, kind, large=kind == trainable) == expected


def test_columns_and_kind_are_written_to_the_file(here: Path) -> None:
    write_images(here / "a", [(16, 16)] * 3)
    (here / "a/other.parquet").write_bytes(b"")
    assert "set kind to folder or parquet (--kind)" in refusal("a", "--base", "base")
    rows = (here / "a/metadata.jsonl").read_text()
    (here / "a/metadata.jsonl").write_text(rows.replace("file_name", "picture").replace("text", "prompt"))
    assert "set image_column (--image-column)" in refusal("a", "--base", "base", "--kind", "folder")
    own = ("--kind", "folder", "--image-column", "picture", "--caption-column", "prompt")
    said = init("a", "--base", "base", "--output", "my a.yaml", *own)
    assert said.splitlines()[1:] == ["  ldm train 'my a.yaml' --plan", "  ldm train 'my a.yaml'"]
    assert "# command: ldm train 'my a.yaml' " in Path("my a.yaml").read_text()
    (source,) = settings_in("my a.yaml").data.all_sources()
    assert (source.kind, source.image_column, source.caption_column) == ("folder", "picture", "prompt")
    assert denoiser.main(["my a.yaml", "device=cpu", "--plan"]) == 0
    assert "kind = 'folders'" in refusal("a", "--base", "base", "--kind", "folders")
    with pytest.raises(UserError, match=r"image_column belongs to data\.path"):
        validate(DataSettings, {"image_column": "x", "sources": [{"path": "a"}]})


def test_overwriting_and_bad_arguments_are_refused(here: Path) -> None:
    write_images(here / "a", [(16, 16)] * 3)
    Path("a.yaml").write_text("mine")
    assert refusal("a", "--base", "base").startswith("error: a.yaml exists already: choose another --output")
    assert Path("a.yaml").read_text() == "mine"
    assert "is inside the data" in refusal("a", "--base", "base", "--output", "a/b.yaml")
    assert "did you mean 'unet'" in refusal("a", "--trainable", "une")
    assert "no such folder or file" in refusal("b", "--base", "base")
    assert "too long for a file name" in refusal("a", "--base", "base", "--output", "c" * 300)
    assert "no model 'bass'" in refusal("a", "--base", "bass", "--output", "c.yaml")
    (here / "a/000.png").write_bytes(b"broken")
    assert "1 of 3 samples are bad" in refusal("a", "--base", "base", "--output", "c.yaml")
    assert not Path("c.yaml").exists() and yaml.safe_load(Path("a.yaml").read_text()) == "mine"

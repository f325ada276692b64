"""The program `text_encoder`, run to the end on eight coloured squares."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image, ImageColor
from transformers import CLIPTextModel, CLIPTokenizer

from ldm.models.clip_vocabulary import token_ids
from train.text_encoder import main

COLORS = ["red", "green", "blue", "yellow", "black", "white", "cyan", "magenta"]
SETTINGS = {
    "program": "text_encoder",
    "num_steps": 40,
    "global_batch_size": 8,
    "save_every": 20,
    "log_every": 10,
    "device": "cpu",
    "num_merges": 30,
    "optim": {"learning_rate": 0.01, "num_warmup_steps": 5, "ema_decay": 0.8},
    "model": {
        "embed_dim": 16,
        "patch_size_px": 4,
        "vision_width": 16,
        "vision_layers": 1,
        "vision_heads": 2,
        "text_width": 16,
        "text_layers": 1,
        "text_heads": 2,
        "context_length": 12,
    },
}


def make_config(folder: Path) -> Path:
    """A folder of coloured squares with two captions each, and a configuration for it."""
    data = folder / "data"
    data.mkdir()
    lines = []
    for color in COLORS:
        Image.new("RGB", (8, 8), color).save(data / f"{color}.png")
        row = {"file_name": f"{color}.png", "text": f"a {color} square", "captions": [color]}
        lines.append(json.dumps(row))
    (data / "metadata.jsonl").write_text("\n".join(lines))
    tree = {**SETTINGS, "run_dir": str(folder / "run"), "data": {"path": str(data), "height": 8, "width": 8}}
    config = folder / "config.yaml"
    config.write_text(yaml.safe_dump(tree))
    return config


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The configuration of a finished run."""
    config = make_config(tmp_path_factory.mktemp("squares"))
    assert main([str(config)]) == 0
    return config


def test_it_learns_to_find_text_and_image(config: Path) -> None:
    report = json.loads((config.parent / "run/report.json").read_text())
    assert report["train"] == {
        "num_images": 8,
        "image_to_text_recall_at_1": 1.0,
        "text_to_image_recall_at_1": 1.0,
        "image_to_text_recall_at_5": 1.0,
        "text_to_image_recall_at_5": 1.0,
    }
    assert "held_out" not in report
    rows = [json.loads(line) for line in (config.parent / "run/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [10, 20, 30, 40]
    assert rows[-1]["accuracy"] == 1.0


@torch.no_grad()
def test_the_text_encoder_written_is_the_tower_that_was_measured(config: Path) -> None:
    run = config.parent / "run"
    tokenizer = CLIPTokenizer.from_pretrained(run / "tokenizer")
    text_model = CLIPTextModel.from_pretrained(run / "text_encoder").eval()
    report = json.loads((run / "report.json").read_text())
    assert len(tokenizer) == report["vocab_size"] == text_model.config.vocab_size
    ids = token_ids(tokenizer, [f"a {color} square" for color in COLORS])
    assert ids.shape == (8, 12)
    average = weights_of(run / "checkpoints/step-000040/average.safetensors")
    assert torch.equal(text_model.embeddings.token_embedding.weight, average["clip.token_embedding.weight"])
    pooled = text_model(input_ids=ids).pooler_output @ average["clip.text_projection"]
    similarity = torch.nn.functional.cosine_similarity(pooled[:, None], pooled[None], dim=2)
    assert (similarity - torch.eye(8)).max() < 0.99, "different captions must differ"


def weights_of(path: Path) -> dict[str, torch.Tensor]:
    from ldm.io.files import read_tensors

    return read_tensors(path)


def test_the_preview_shows_every_image_above_a_caption(config: Path) -> None:
    with Image.open(config.parent / "run/previews/step-000040.png") as image:
        drawn = {color for _, color in image.convert("RGB").getcolors(maxcolors=image.width * image.height)}
        assert {ImageColor.getrgb(color) for color in COLORS} <= drawn
        assert image.height > 2 * 8, "captions need room"


def test_a_resumed_run_gives_the_same_model(config: Path, tmp_path: Path) -> None:
    run = config.parent / "run"
    shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("step-000040", "text_encoder"))
    assert sorted(p.name for p in (tmp_path / "run/checkpoints").iterdir()) == ["step-000020"]
    assert main([str(config), f"run_dir={tmp_path / 'run'}"]) == 0
    resumed = (tmp_path / "run/text_encoder/model.safetensors").read_bytes()
    assert resumed == (run / "text_encoder/model.safetensors").read_bytes()


def test_held_out_images_are_measured_and_their_words_not_learned(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    assert main([str(config), "num_steps=6", "data.holdout_fraction=0.4", "num_merges=40"]) == 0
    report = json.loads((tmp_path / "run/report.json").read_text())
    assert report["held_out"]["num_images"] + report["train"]["num_images"] == 8
    tokenizer = CLIPTokenizer.from_pretrained(tmp_path / "run/tokenizer")
    whole_words = [color for color in COLORS if f"{color}</w>" in tokenizer.get_vocab()]
    assert len(whole_words) == report["train"]["num_images"]


def test_a_batch_in_pieces_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(make_config(tmp_path)), "max_micro_batch=4"]) == 2
    error = capsys.readouterr().err
    assert "max_micro_batch = 4 splits the 8 samples that are compared: set max_micro_batch=8" in error


def test_captions_that_do_not_fit_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(make_config(tmp_path)), "num_steps=6", "model.context_length=4"]) == 0
    assert "8 captions are cut to model.context_length = 4 tokens" in capsys.readouterr().err


def test_an_unknown_setting_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(make_config(tmp_path)), "model.text_widht=8"]) == 2
    assert "did you mean 'text_width'?" in capsys.readouterr().err

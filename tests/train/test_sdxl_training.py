"""Training a tiny SDXL: from the latent cache, resumed, and what an empty caption is."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from ldm.config import load_settings
from ldm.io.files import read_tensors
from ldm.models.loading.model import save_parts
from ldm.pipeline.pipeline import load_pipeline
from ldm.types import Conditioning
from tests.support.slow_cases import rest_slow
from tests.support.tiny_models import make_sdxl
from tests.support.tiny_runs import COMMON, write_squares
from train import denoiser
from train.data.latents import cached_prompts, text_encoder_hash
from train.run.denoiser_model import make_loss
from train.run.run import Run
from train.settings.denoiser import DenoiserSettings

KINDS: dict[str, dict[str, Any]] = {
    "lora": {"trainable": "lora", "lora": {"rank": 2, "text_encoder": True}},
    "unet": {"trainable": "unet"},
    "embedding": {
        "trainable": "embedding",
        "embedding": {"token": "<cat>", "initial_word": "red", "num_vectors": 2},
        "captions": {"dropout": 0.5, "prefix": "<cat> "},
    },
}

PROMPTS = {"lora": "red", "unet": "red", "embedding": "a <cat>"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sdxl")
    save_parts(make_sdxl(folder / "tokenizers"), folder / "base")
    write_squares(folder / "data")
    return folder


def config(folder: Path, name: str, **changes: Any) -> Path:
    tree = {
        **COMMON,
        "program": "denoiser",
        "base": str(folder / "base"),
        "run_dir": str(folder / name),
        "data": {
            "path": str(folder / "data"),
            "height": 16,
            "width": 16,
            "flip": True,
            "holdout_fraction": 0.2,
        },
        "cache": {"folder": str(folder / "cache")},
        "captions": {"dropout": 0.5},
        "preview": {"prompts": ["red"], "num_inference_steps": 1},
        "num_steps": 4,
        "validation": {"every": 2},
        "optim": {**COMMON["optim"], "lr_schedule": "constant", "num_warmup_steps": 0},
        **changes,
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def weights(run_dir: Path) -> dict[str, Tensor]:
    newest = sorted((run_dir / "checkpoints").iterdir())[-1]
    return read_tensors(newest / "weights.safetensors")


@pytest.mark.parametrize("kind", rest_slow(KINDS, "lora", "embedding"))
def test_a_resumed_run_ends_with_the_same_weights_and_generates(folder: Path, kind: str) -> None:
    for steps in (2, 4):
        assert denoiser.main([str(config(folder, f"{kind}-two", num_steps=steps, **KINDS[kind]))]) == 0
    assert denoiser.main([str(config(folder, f"{kind}-one", **KINDS[kind]))]) == 0
    one, two = (weights(folder / f"{kind}-{name}") for name in ("one", "two"))
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    rows = [json.loads(line) for line in (folder / f"{kind}-one" / "metrics.jsonl").read_text().splitlines()]
    assert all(row["loss"] > 0 for row in rows if "loss" in row)
    made = [
        load_pipeline(place, device="cpu").generate(PROMPTS[kind], seed=1, num_inference_steps=2).latents
        for place in (folder / f"{kind}-one", folder / "base")
    ]
    assert not torch.equal(*made)  # type: ignore[arg-type]
    if kind == "lora":
        assert {name.split(".")[1] for name in one if "lora" in name} >= {"unet"}
        stored = read_tensors(folder / "lora-one/pipeline/pytorch_lora_weights.safetensors")
        assert {name.split(".")[0] for name in stored} == {"unet", "text_encoder", "text_encoder_2"}
    if kind == "embedding":
        stored = read_tensors(folder / "embedding-one/pipeline/learned_embeds.safetensors")
        assert {name: tuple(tensor.shape) for name, tensor in stored.items()} == {
            "clip_l": (2, 32),
            "clip_g": (2, 24),
        }
        assert all(not torch.equal(*vectors) for vectors in stored.values())  # each learned its own place


def test_a_dropped_caption_is_what_generation_is_told_without_a_prompt(folder: Path) -> None:
    settings = load_settings(DenoiserSettings, config(folder, "dropped"))
    loss = make_loss(settings)
    loss.prompts = cached_prompts(Run(settings), (), loss.parts.text_encoder, settings)
    pipeline = load_pipeline(folder / "base", device="cpu")
    told: list[Conditioning] = [loss.parts.text_encoder([""]), pipeline.text_encoder([""])]
    assert loss.prompts is not None
    told.append(loss.prompts([""]))
    for each in told:
        assert each.pooled is not None
        assert not each.prompt_embeds.any() and not each.pooled.any()
        assert each.prompt_embeds.shape == (1, 16, 56) and each.pooled.shape == (1, 20)


def test_the_cache_of_captions_knows_what_an_empty_one_is(folder: Path) -> None:
    parts = make_sdxl(folder / "more-tokenizers")
    before = text_encoder_hash(parts.text_encoder, 1)
    for each in parts.text_encoder.encoders:
        each.zeros_for_empty = False
    assert text_encoder_hash(parts.text_encoder, 1) != before


def test_the_loss_depends_on_the_sizes_that_are_told(folder: Path) -> None:
    settings = load_settings(DenoiserSettings, config(folder, "told", captions={"dropout": 0.0}))
    loss = make_loss(settings)
    assert loss.tells_sizes
    batch: dict[str, Any] = {
        "caption": ["red"],
        "noise": torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)),
        "told_sizes": [(16.0, 16.0, 0.0, 0.0, 16.0, 16.0)],
    }
    told = loss.conditioning(batch, torch.device("cpu"))
    assert told.time_ids is not None and told.time_ids.tolist() == [[16, 16, 0, 0, 16, 16]]
    assert told.time_ids.dtype == torch.float32

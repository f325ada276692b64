"""The denoiser's loss: frozen encoders ignore mixed precision, and loss weights and loss masks have an effect."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from ldm.config import validate
from ldm.data.batches import collate
from ldm.data.order import SampleKey
from ldm.diffusion.path import DDPMPath, ScheduleSettings
from ldm.models.loading.model import ModelParts
from tests.support.tiny_models import make_sd1
from tests.support.tiny_runs import COMMON, write_squares
from tests.support.tiny_sources import tar
from train.data.latents import image_readers, latent_samples
from train.data.read import read_data
from train.data.streams import begin_stream, streamed_samples
from train.loop.denoiser_loss import DenoiserLoss
from train.run.run import Run
from train.settings.denoiser import DenoiserSettings

CPU = torch.device("cpu")


@pytest.fixture
def parts(tmp_path: Path) -> ModelParts:
    return make_sd1(tmp_path / "tokenizer")


def make_settings(folder: Path, **changes: Any) -> DenoiserSettings:
    tree = {**COMMON, "program": "denoiser", "base": "emoji", "run_dir": str(folder / "run")}
    cache = {"enabled": False, "folder": str(folder / "cache")}
    return validate(DenoiserSettings, {**tree, "cache": cache, "data": {"path": "data"}, **changes})


def make_loss(parts: ModelParts, settings: DenoiserSettings) -> DenoiserLoss:
    return DenoiserLoss(parts, settings, DDPMPath(ScheduleSettings()), [])


def test_a_frozen_encoder_says_under_autocast_what_the_cache_holds(tmp_path: Path, parts: ModelParts) -> None:
    module = make_loss(parts, make_settings(tmp_path))
    random = torch.Generator().manual_seed(0)
    batch = {
        "pixel_values": torch.randn(2, 3, 16, 16, generator=random),
        "posterior_noise": torch.randn(2, 4, 8, 8, generator=random),
    }
    plain = module.latents(batch), module.embed(["a red apple"], CPU)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = module.latents(batch), module.embed(["a red apple"], CPU)
        assert torch.is_autocast_enabled("cpu")
    assert torch.equal(mixed[0], plain[0]) and torch.equal(mixed[1].prompt_embeds, plain[1].prompt_embeds)
    assert mixed[1].prompt_embeds.dtype == torch.float32


def test_a_trained_text_encoder_is_in_mixed_precision(tmp_path: Path, parts: ModelParts) -> None:
    module = make_loss(parts, make_settings(tmp_path, trainable="unet+text_encoder"))
    parts.text_encoder.requires_grad_(True)
    plain = module.embed(["a red apple"], CPU).prompt_embeds
    with torch.autocast("cpu", torch.bfloat16):
        mixed = module.embed(["a red apple"], CPU).prompt_embeds
    assert mixed.requires_grad and not torch.equal(mixed.float(), plain)


LEFT, RIGHT = (0, 0, 8, 16), (8, 0, 16, 16)


def half(box: tuple[int, int, int, int]) -> Image.Image:
    """A mask that is white in one half."""
    mask = Image.new("L", (16, 16), 0)
    mask.paste(255, box)
    return mask


def folder_batch(
    folder: Path, parts: ModelParts, seen: tuple[int, int, int, int] = LEFT, **source: Any
) -> tuple[DenoiserSettings, dict[str, Any]]:
    """Two samples of a folder as in training; beside it are masks that are white inside `seen`."""
    data = write_squares(folder / "data")
    for path in data.glob("*.png"):
        (folder / "masks").mkdir(exist_ok=True)
        half(seen).save(folder / "masks" / path.name)
    tree = {"sources": [{"path": str(data), **source}], "height": 16, "width": 16}
    settings = make_settings(folder, data=tree)
    run = Run(settings)
    placed = read_data(run, folder=folder / "cache").train
    images = image_readers(run, placed, parts.autoencoder, settings)
    dataset = latent_samples(settings, parts.autoencoder, placed, images)
    return settings, collate([dataset[SampleKey(0, index)] for index in (0, 1)])


def stream_batch(
    folder: Path, parts: ModelParts, seen: tuple[int, int, int, int] = LEFT, **source: Any
) -> tuple[DenoiserSettings, dict[str, Any]]:
    """Two samples of a stream: white images, opaque only inside `seen`, so on a white background they are equal."""
    folder.mkdir()
    picture = Image.new("RGB", (16, 16), "white")
    picture.putalpha(half(seen))
    picture.save(folder / "clear.png")
    clear = (folder / "clear.png").read_bytes()
    (folder / "shards").mkdir()
    tar(folder / "shards/0.tar", {"0.png": clear, "0.txt": "a", "1.png": clear, "1.txt": "b"})
    sources = [{"path": str(folder / "shards"), **source}]
    data = {"sources": sources, "height": 16, "width": 16, "streaming": True}
    settings = make_settings(folder, data=data)
    run = Run(settings)
    images = image_readers(run, (), parts.autoencoder, settings)
    dataset = streamed_samples(settings, latent_samples(settings, parts.autoencoder, (), images))
    run.run_dir.mkdir()
    turns = next(iter(begin_stream(run, settings, parts.text_encoder, 4)(0, {})))
    return settings, collate([dataset[turn] for turn in turns])


def losses(parts: ModelParts, settings: DenoiserSettings, batch: dict[str, Any]) -> Tensor:
    """[b]."""
    with torch.no_grad():
        return make_loss(parts, settings)(batch)["loss"]


def assert_halves(left: Tensor, right: Tensor, whole: Tensor) -> None:
    """A masked loss is the mean inside the mask, so the mean of two equal halves is the loss of the whole."""
    assert not torch.isclose(left, whole, rtol=1e-3).any()
    torch.testing.assert_close((left + right) / 2, whole, rtol=1e-5, atol=0)


def test_the_masks_of_a_folder_count(tmp_path: Path, parts: ModelParts) -> None:
    left, right = (
        losses(parts, *folder_batch(tmp_path / name, parts, seen, masks=str(tmp_path / name / "masks")))
        for name, seen in (("left", LEFT), ("right", RIGHT))
    )
    assert_halves(left, right, losses(parts, *folder_batch(tmp_path / "whole", parts)))


def test_the_masks_of_a_stream_count(tmp_path: Path, parts: ModelParts) -> None:
    left, right = (
        losses(parts, *stream_batch(tmp_path / name, parts, seen, alpha_mask=True))
        for name, seen in (("left", LEFT), ("right", RIGHT))
    )
    assert_halves(left, right, losses(parts, *stream_batch(tmp_path / "whole", parts)))


def test_the_loss_of_a_sample_is_multiplied_with_its_weight(tmp_path: Path, parts: ModelParts) -> None:
    settings, batch = folder_batch(tmp_path / "light", parts, loss_weight=0.25)
    light, plain = losses(parts, settings, batch), losses(parts, *folder_batch(tmp_path / "plain", parts))
    assert plain.min() > 0 and torch.equal(light, 0.25 * plain)
    told = make_loss(parts, settings)(batch)  # the losses by tenth are unweighted
    assert sum(float(told[f"loss_t{k}"][0]) for k in range(10)) == pytest.approx(float(plain[0]))

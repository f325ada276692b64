"""The program `autoencoder` on coloured squares: it learns, and its result is a stock diffusers folder."""

import json
from pathlib import Path

import pytest
import torch

from ldm.data.batches import ImageTransform
from ldm.data.folder import read_folder
from tests.tiny_runs import AUTOENCODER, write_config, write_squares
from train.autoencoder import main


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("autoencoder")
    data = write_squares(folder / "data")
    optim = {"learning_rate": 0.01, "num_warmup_steps": 5, "ema_decay": 0.9}
    config = write_config(folder / "c.yaml", AUTOENCODER, data, folder / "run", num_steps=40, optim=optim)
    assert main([str(config), "data.holdout_fraction=0.3"]) == 0
    return folder


def test_it_learns_to_give_images_back(folder: Path) -> None:
    rows = [json.loads(line) for line in (folder / "run/metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["loss"] < 0.75 * rows[0]["loss"]
    report = json.loads((folder / "run/report.json").read_text())
    assert report["train"]["num_images"] + report["held_out"]["num_images"] == 7
    assert (folder / "run/reconstruction.png").is_file()


@torch.no_grad()
def test_its_scaling_factor_gives_latents_of_unit_size(folder: Path) -> None:
    from diffusers import AutoencoderKL

    autoencoder = AutoencoderKL.from_pretrained(folder / "run/autoencoder")
    transform = ImageTransform(16, 16)
    rows = json.loads((folder / "run/report.json").read_text())["train"]["num_images"]
    samples = read_folder(folder / "data")
    pixel_values = torch.stack([transform(s) for s in samples])
    posterior = autoencoder.encode(pixel_values).latent_dist
    latents = (
        posterior.mean + posterior.std * torch.randn_like(posterior.mean)
    ) * autoencoder.config.scaling_factor
    assert latents.square().mean().sqrt().item() == pytest.approx(1.0, abs=0.3)
    assert rows < len(samples)

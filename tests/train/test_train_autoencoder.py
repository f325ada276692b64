"""The program `autoencoder` on coloured squares learns, and its result is a stock diffusers folder."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from ldm.data.batches import ImageTransform
from ldm.data.sources.image_folder import read_folder
from tests.support.tiny_runs import AUTOENCODER, write_config, write_squares
from train.autoencoder import AutoencoderLoss, ReconstructionSettings, latent_std, main


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


def write_oblong(folder: Path) -> Path:
    """Six images whose bucket sides, for a budget of 64 x 64, would be multiples of 4 such as 44 px."""
    folder.mkdir()
    for number, size in enumerate([(96, 64), (64, 96), (80, 60), (64, 64), (100, 56), (112, 28)]):
        Image.new("RGB", size, (40 * number, 20, 200)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"number {number}")
    return folder


def test_it_trains_on_buckets_of_any_size(tmp_path: Path) -> None:
    """The network could halve such sides, but the pyramid could not."""
    config = write_config(
        tmp_path / "c.yaml", AUTOENCODER, write_oblong(tmp_path / "data"), tmp_path / "run", num_steps=3
    )
    buckets = ["data.buckets=true", "data.height=64", "data.width=64", "data.upscale=true"]
    assert main([str(config), *buckets]) == 0
    assert (tmp_path / "run/reconstruction.png").is_file()


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["data.height=15"], "data.height = 15: choose a multiple of 8, at least 16"),
        (["data.width=20"], "data.width = 20: choose a multiple of 8, at least 16"),
        (["data.height=8"], "data.height = 8: choose a multiple of 8, at least 16"),
        (["objective.detail_levels=5"], "data.height = 16: choose a multiple of 32, at least 32"),
        (
            ["objective.detail_levels=1", "model.block_out_channels=[8,8,8,8]", "data.width=20"],
            "data.width = 20: choose a multiple of 8",
        ),
        (
            ["data.path=OBLONG", "data.buckets=true", "data.upscale=true", "data.max_aspect=4"],
            "a bucket is 8 x 32 px",
        ),
    ],
)
def test_sizes_that_cannot_be_halved_or_measured_are_one_line(
    tmp_path: Path, overrides: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(
        tmp_path / "c.yaml", AUTOENCODER, write_squares(tmp_path / "data"), tmp_path / "run"
    )
    oblong = write_oblong(tmp_path / "oblong")
    changes = [each.replace("OBLONG", str(oblong)) for each in overrides]
    assert main([str(config), *changes]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


class Posterior:
    """Latents of a given mean and variance."""

    def __init__(self, mean: Tensor, variance: Tensor) -> None:
        self.mean, self.var, self.std, self.logvar = mean, variance, variance.sqrt(), variance.log()


class Linear(nn.Module):
    """Encodes to half the pixels, with each latent as its own variance; decodes to three quarters of its input."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(0.5))

    def encode(self, pixel_values: Tensor) -> SimpleNamespace:
        mean = self.gain * pixel_values
        return SimpleNamespace(latent_dist=Posterior(mean, mean.abs() + 0.1))

    def decode(self, latents: Tensor) -> SimpleNamespace:
        return SimpleNamespace(sample=0.75 * latents)


def draw_batch() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    pixel_values, noise = torch.rand(2, 2, 3, 8, 8, generator=generator) * 2 - 1
    return {"pixel_values": pixel_values, "noise": noise, "loss_weight": torch.tensor([1.0, 3.0])}


@pytest.mark.parametrize("name", ["l1_weight", "l2_weight", "kl_weight", "detail_weight"])
def test_each_weight_counts_its_own_term(name: str) -> None:
    batch, weights = draw_batch(), dict.fromkeys(ReconstructionSettings.model_fields, 0.0)
    settings = ReconstructionSettings(**{**weights, "detail_levels": 2, name: 2.5})
    x = batch["pixel_values"]
    mean, variance = x / 2, x.abs() / 2 + 0.1
    error = 0.75 * (mean + variance.sqrt() * batch["noise"]) - x
    half, up = functional.avg_pool2d(error, 2), nn.Upsample(scale_factor=2, mode="bilinear")
    fine, coarse = error - up(half), half - up(functional.avg_pool2d(half, 2))
    terms = {
        "l1_weight": error.abs(),
        "l2_weight": error**2,
        "kl_weight": 0.5 * (mean**2 + variance - 1 - variance.log()),
    }
    bands = fine.abs().mean(dim=(1, 2, 3)) + coarse.abs().mean(dim=(1, 2, 3))
    term = terms[name].mean(dim=(1, 2, 3)) if name in terms else bands
    loss = AutoencoderLoss(Linear(), settings)(batch)["loss"]
    torch.testing.assert_close(loss, 2.5 * term * batch["loss_weight"])


def test_the_size_of_the_latents_counts_their_variance(monkeypatch: pytest.MonkeyPatch) -> None:
    """E[z^2] = mean^2 + variance over the posterior."""
    x = draw_batch()["pixel_values"]
    monkeypatch.setattr("train.autoencoder.pixel_batches", lambda placed: [x[:1], x[1:]])
    expected = ((x / 2) ** 2 + x.abs() / 2 + 0.1).mean().sqrt()
    assert latent_std(Linear(), []) == pytest.approx(float(expected), rel=1e-6)

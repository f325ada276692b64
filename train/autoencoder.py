"""Program: a KL autoencoder, trained on images (Rombach et al. 2022, without the adversarial loss).

`python -m train.autoencoder CONFIG key=value ...` or `ldm train CONFIG`. Rerun the same command to resume.
The run's `autoencoder/` is a diffusers AutoencoderKL whose scaling factor was measured on the training images.
"""

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from ldm.config import Settings
from ldm.data.batches import ImageSamples, pixel_batches
from ldm.data.cache.cache_folder import cache_root
from ldm.data.prepare import BucketedSample
from ldm.errors import UserError
from ldm.evaluation.metrics import WINDOW_PX, psnr, ssim
from ldm.io.files import write_json
from ldm.io.folders import new_folder
from ldm.io.images import image_grid, tensor_to_images
from ldm.io.png import write_chunks
from ldm.models.fresh import AutoencoderShape, make_autoencoder

from .data.read import TrainingData, check_image_size, read_data, write_data_report
from .loop.state import TrainState
from .loop.steps import Batch
from .run.program import run_program
from .run.run import Run
from .settings.shared import TrainSettings


class ReconstructionSettings(Settings):
    """The terms of the loss; each is a mean over pixels or latents."""

    l1_weight: float = Field(1.0, ge=0, description="weight of the pixels' absolute error")
    l2_weight: float = Field(
        1.0, ge=0, description="weight of the pixels' squared error, which PSNR measures"
    )
    detail_weight: float = Field(
        1.0, ge=0, description="weight of the Laplacian pyramid's absolute error: edges at each scale"
    )
    detail_levels: int = Field(3, ge=1, description="scales of the pyramid; each halves H and W")
    kl_weight: float = Field(
        1e-3, ge=0, description="weight of the divergence from a standard normal, which smooths the latents"
    )


class AutoencoderSettings(TrainSettings):
    """Settings of the program `autoencoder`."""

    program: Literal["autoencoder"]
    model: AutoencoderShape = AutoencoderShape()
    objective: ReconstructionSettings = ReconstructionSettings()


def size_multiple(settings: AutoencoderSettings) -> int:
    """What image sides must be multiples of, since the network and the pyramid halve them: pixels."""
    return math.lcm(settings.model.downscale, 2**settings.objective.detail_levels)


def check_size(settings: AutoencoderSettings) -> None:
    """Refuse an image size that cannot be halved often enough, or is too small to be measured.

    Raises:
        UserError: names the setting and the multiple.
    """
    multiple = size_multiple(settings)
    least = math.ceil(WINDOW_PX / multiple) * multiple
    hint = (
        f"choose a multiple of {multiple}, at least {least}, because model.block_out_channels and "
        "objective.detail_levels halve it"
    )
    check_image_size(settings.data, multiple, hint, least)


def check_buckets(data: TrainingData) -> None:
    """Refuse buckets that are too small to be measured.

    Raises:
        UserError: names the smallest.
    """
    height, width = min((one.size for one in [*data.train, *data.held_out]), key=min)
    if min(height, width) < WINDOW_PX:
        raise UserError(
            f"data.buckets = true: a bucket is {height} x {width} px, but measuring reconstructions needs at least "
            f"{WINDOW_PX} px",
            "raise data.height and data.width, or lower data.max_aspect",
        )


def laplacian_pyramid(image: Tensor, levels: int) -> list[Tensor]:
    """The bands of [B, 3, H, W], finest first: each level minus its blur (Burt & Adelson 1983)."""
    bands = []
    for _ in range(levels):
        smaller = functional.avg_pool2d(image, 2)
        blurred = functional.interpolate(smaller, scale_factor=2.0, mode="bilinear", align_corners=False)
        bands.append(image - blurred)
        image = smaller
    return bands


def kl_to_normal(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mean, variance) || N(0, 1)), averaged over the latents: [B, C, h, w] -> [B]."""
    return 0.5 * (mean.square() + log_variance.exp() - 1.0 - log_variance).mean(dim=(1, 2, 3))


class AutoencoderLoss(nn.Module):
    """The network and its loss as one module: a batch in, one loss per sample out."""

    def __init__(self, autoencoder: nn.Module, objective: ReconstructionSettings) -> None:
        super().__init__()
        self.autoencoder: Any = autoencoder
        self.objective = objective

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Per-sample `loss`, `l1`, `psnr` and `kl`, each [b]."""
        pixel_values = batch["pixel_values"]
        posterior = self.autoencoder.encode(pixel_values).latent_dist
        latents = posterior.mean + posterior.std * batch["noise"]
        reconstruction = self.autoencoder.decode(latents).sample.float()
        difference = (reconstruction - pixel_values).flatten(1)
        l1, l2 = difference.abs().mean(dim=1), difference.square().mean(dim=1)
        kl = kl_to_normal(posterior.mean, posterior.logvar)
        weights = self.objective
        loss = weights.l1_weight * l1 + weights.l2_weight * l2 + weights.kl_weight * kl
        loss = loss + weights.detail_weight * self._detail(reconstruction, pixel_values)
        return {
            "loss": loss * batch["loss_weight"],
            "l1": l1,
            "psnr": psnr(reconstruction, pixel_values),
            "kl": kl,
        }

    def _detail(self, reconstruction: Tensor, pixel_values: Tensor) -> Tensor:
        levels = self.objective.detail_levels
        # the pyramid is linear, so the pyramid of the difference is the difference of the pyramids
        bands = laplacian_pyramid(reconstruction - pixel_values, levels)
        return torch.stack([band.abs().mean(dim=(1, 2, 3)) for band in bands]).sum(dim=0)


@torch.no_grad()
def reconstruct(autoencoder: nn.Module, pixel_values: Tensor) -> Tensor:
    """Encode to the posterior's mean and decode again: [B, 3, H, W] -> the same."""
    decoded: Tensor = autoencoder.decode(autoencoder.encode(pixel_values).latent_dist.mean).sample  # type: ignore[operator]
    return decoded.float().clamp(-1, 1)


def measure(autoencoder: nn.Module, placed: Sequence[BucketedSample]) -> dict[str, float]:
    """Mean PSNR (dB) and SSIM over samples, of reconstructions from the posterior's mean."""
    device = next(autoencoder.parameters()).device
    scores = []
    for pixel_values in pixel_batches(placed):
        output = reconstruct(autoencoder, pixel_values.to(device)).cpu()
        scores.append(torch.stack([psnr(output, pixel_values), ssim(output, pixel_values)], dim=1))
    means = torch.cat(scores).mean(dim=0)
    return {"num_images": len(placed), "psnr_db": float(means[0]), "ssim": float(means[1])}


@torch.no_grad()
def latent_std(autoencoder: nn.Module, placed: Sequence[BucketedSample]) -> float:
    """Root mean square of sampled latents, from means and variances; the scaling factor is its inverse."""
    device = next(autoencoder.parameters()).device
    squares = []
    for pixel_values in pixel_batches(placed):
        posterior = autoencoder.encode(pixel_values.to(device)).latent_dist  # type: ignore[operator]
        squares.append((posterior.mean.square() + posterior.var).mean(dim=(1, 2, 3)).cpu())
    return float(torch.cat(squares).mean().sqrt())


def write_grid(autoencoder: nn.Module, placed: Sequence[BucketedSample], path: Path) -> None:
    """Write an image of originals, each above its reconstruction."""
    shown = [one for one in placed if one.size == placed[0].size][:16]
    pixel_values = torch.stack([one.pixels() for one in shown])
    output = reconstruct(autoencoder, pixel_values.to(next(autoencoder.parameters()).device)).cpu()
    rows = [torch.cat([pixel_values[i : i + 8], output[i : i + 8]]) for i in range(0, len(pixel_values), 8)]
    grid = image_grid(tensor_to_images(torch.cat(rows)), num_columns=min(8, len(pixel_values)))
    write_chunks(path, grid, {}, overwrite=True)


def train(settings: AutoencoderSettings) -> None:
    """Train, then write `autoencoder/`, `report.json` and `reconstruction.png` into the run directory."""
    check_size(settings)
    run = Run(settings)
    autoencoder: Any = make_autoencoder(settings.model, settings.data.height)
    loss = AutoencoderLoss(autoencoder, settings.objective)
    scale = settings.model.downscale
    data = read_data(run, folder=cache_root(), multiple=size_multiple(settings))
    check_buckets(data)
    dataset = ImageSamples(
        data.train,
        seed=settings.seed,
        flip=settings.data.flip,
        latent_channels=settings.model.latent_channels,
        downscale=scale,
    )

    def preview(state: TrainState, path: Path) -> None:
        with state.average.applied():
            write_grid(autoencoder, data.held_out or data.train, path)

    state = run.train(  # the training loop
        loss,
        dataset,
        bucket_of=[one.size for one in data.train],
        sample_ids=data.sample_ids,
        preview=preview,
        opened=lambda: write_data_report(run.run_dir, data),
    )
    if run.main:
        with state.average.applied():
            std = latent_std(autoencoder, data.train)
            autoencoder.register_to_config(scaling_factor=1.0 / std)
            _write_result(run, autoencoder, data)


def _write_result(run: Run, autoencoder: Any, data: TrainingData) -> None:
    report = {"train": measure(autoencoder, data.train[:256])}
    if data.held_out:
        report["held_out"] = measure(autoencoder, data.held_out)
    with new_folder(run.run_dir / "autoencoder", replace=True) as folder:
        autoencoder.save_pretrained(folder)
    write_grid(autoencoder, data.held_out or data.train, run.run_dir / "reconstruction.png")
    write_json(run.run_dir / "report.json", {"scaling_factor": autoencoder.config.scaling_factor, **report})
    for split, numbers in report.items():
        print(
            f"{split}: PSNR {numbers['psnr_db']:.2f} dB, SSIM {numbers['ssim']:.3f} on {numbers['num_images']} images"
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns the exit code."""
    return run_program(AutoencoderSettings, train, argv)


if __name__ == "__main__":
    sys.exit(main())

"""What a denoiser is told of a sample's size belongs to the crop, flip and bucket of the latent that it gets.

Each image encodes positions: red is the row and green the column of a pixel, counted from the top left. The
autoencoder is replaced by averages of 2 x 2 pixels, so the first latent of a sample says where its crop begins.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from ldm.config import validate
from ldm.data.order import SampleKey
from ldm.models.vae import KLAutoencoder
from tests.support.tiny_models import make_sd1
from tests.support.tiny_runs import COMMON
from train.data.latents import image_readers, latent_samples
from train.data.read import read_data
from train.loop.denoiser_loss import size_conditions
from train.run.run import Run
from train.settings.denoiser import DenoiserSettings

SIZES = [(16, 16), (16, 29), (37, 16), (48, 80), (81, 40), (33, 50), (17, 17)]


class Averages(KLAutoencoder):
    """Latents are averages of 2 x 2 pixels."""

    def encode(self, pixel_values: Tensor) -> Tensor:
        pooled = torch.nn.functional.avg_pool2d(pixel_values, 2)
        return torch.cat([pooled, pooled[:, :1], torch.zeros_like(pooled), pooled[:, :1]], dim=1)


def write_positions(folder: Path) -> Path:
    folder.mkdir()
    for height, width in SIZES:
        rows, columns = np.mgrid[:height, :width]
        pixels = np.stack([rows, columns, np.zeros_like(rows)], axis=-1).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{height}x{width}.png")
        (folder / f"{height}x{width}.txt").write_text("a gradient")
    return folder


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("buckets", [True, False])
def test_the_first_latent_is_where_the_told_crop_begins(tmp_path: Path, cached: bool, buckets: bool) -> None:
    data = {"height": 16, "width": 16, "buckets": buckets, "flip": True, "crop_variants": 3}
    tree = {**COMMON, "program": "denoiser", "base": "emoji", "run_dir": str(tmp_path / "run")}
    settings = validate(
        DenoiserSettings,
        {
            **tree,
            "data": {"path": str(write_positions(tmp_path / "data")), **data},
            "cache": {"folder": str(tmp_path / "cache"), "enabled": cached},
        },
    )
    run, autoencoder = Run(settings), Averages(make_sd1(tmp_path / "tokenizer").autoencoder.vae)
    placed = read_data(run, folder=tmp_path / "cache", multiple=4).train
    assert len(placed) == len(SIZES)
    readers = image_readers(run, placed, autoencoder, settings)
    dataset, seen = latent_samples(settings, autoencoder, placed, readers, tells_sizes=True), set()
    for epoch in range(6):
        for index, one in enumerate(placed):
            item = dataset[SampleKey(epoch, index)]
            sizes = size_conditions(item["told_sizes"])
            own = f"{int(sizes.original[0])}x{int(sizes.original[1])}"
            assert one.sample.sample_id.startswith(own) and sizes.target == one.size
            moments = item["moments"] if cached else autoencoder.encode(item["pixel_values"][None])[0]
            assert sizes.target == (2 * moments.shape[1], 2 * moments.shape[2])
            row, column = ((moments[:2, 0, 0] + 1) * 127.5).tolist()
            scale = min(one.facts.height / one.size[0], one.facts.width / one.size[1])
            told_row, told_column = sizes.crop
            flipped = bool(moments[1, 0, 0] > moments[1, 0, -1])
            if flipped:  # the image is mirrored as a whole
                column = one.facts.width - 1 - column
            # the centers of the first four pixels, in pixels of the image
            assert row == pytest.approx((told_row + 1) * scale - 0.5, abs=0.7)
            assert column == pytest.approx((told_column + 1) * scale - 0.5, abs=0.7)
            seen.add((own, sizes.crop, flipped))
    assert len(seen) > 2 * len(SIZES)

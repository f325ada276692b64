"""Cached mask variants: what a batch has of them is what encoding the masked images gives, in any epoch and process."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from ldm.config import validate
from ldm.data.batches import LatentSamples, collate
from ldm.data.cache.drawn import drawn_items, drawn_keys
from ldm.data.cache.moments import MomentsCache, variant_keys
from ldm.data.order import SampleKey
from ldm.data.random_masks import VERSION, draw_mask
from ldm.diffusion.path import DDPMPath, ScheduleSettings
from ldm.errors import UserError
from ldm.models.loading.model import ModelParts
from ldm.tasks import find_task
from tests.support.tiny_models import make_sd1
from tests.support.tiny_runs import COMMON, write_squares
from tests.support.tiny_task_models import for_task
from train.data.latents import encode_images, image_readers, latent_samples
from train.data.read import read_data
from train.loop.denoiser_loss import DenoiserLoss
from train.run.run import Run
from train.settings.denoiser import DenoiserSettings

NUM_VARIANTS = 2
INPUTS = find_task("inpaint").inputs


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drawn")
    write_squares(folder / "data")
    return folder


@pytest.fixture(scope="module")
def parts(folder: Path) -> ModelParts:
    return for_task(make_sd1(folder / "tokenizer"), "inpaint")


def make_settings(folder: Path, **cache: Any) -> DenoiserSettings:
    tree = {
        **COMMON,
        "program": "denoiser",
        "task": "inpaint",
        "base": "emoji",
        "run_dir": str(folder / "run"),
    }
    data = {"path": str(folder / "data"), "height": 16, "width": 16, "flip": True}
    return validate(
        DenoiserSettings, {**tree, "data": data, "cache": {"folder": str(folder / "cache"), **cache}}
    )


def samples(folder: Path, parts: ModelParts, **cache: Any) -> tuple[DenoiserSettings, LatentSamples]:
    settings = make_settings(folder, **cache)
    run = Run(settings)
    placed = read_data(run, folder=folder / "cache", inputs=INPUTS).train
    readers = image_readers(run, placed, parts.autoencoder, settings)
    return settings, latent_samples(settings, parts.autoencoder, placed, readers, INPUTS)


def items(dataset: LatentSamples, epochs: range = range(3)) -> Iterator[tuple[int, dict[str, Any]]]:
    for epoch in epochs:
        for index in range(len(dataset)):
            yield epoch, dataset[SampleKey(epoch, index)]


def test_the_cache_holds_the_masked_images_and_no_pixels_are_read(folder: Path, parts: ModelParts) -> None:
    settings, cached = samples(folder, parts, mask_variants=NUM_VARIANTS)
    _, plain = samples(folder, parts, enabled=False, mask_variants=NUM_VARIANTS)
    for (epoch, one), (_, other) in zip(items(cached), items(plain), strict=True):
        assert torch.equal(one["drawn_mask"], other["drawn_mask"])
        masked = other["image_pixels"] * (1 - other["drawn_mask"])
        expected = encode_images(parts.autoencoder, masked[None])[0]
        torch.testing.assert_close(one["masked_image"], expected, atol=1e-5, rtol=1e-5)
        assert "image_pixels" not in one
        key = (settings.seed, epoch % NUM_VARIANTS, one["sample_id"])
        assert torch.equal(one["drawn_mask"], draw_mask(key, (16, 16))["mask"])
    loss = DenoiserLoss(parts, settings, DDPMPath(ScheduleSettings()), [])
    with torch.no_grad():
        ours, theirs = (
            loss(collate([dataset[SampleKey(1, index)] for index in range(4)]))["loss"]
            for dataset in (cached, plain)
        )
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_by_default_every_epoch_has_new_masks(folder: Path, parts: ModelParts) -> None:
    _, dataset = samples(folder, parts)
    masks = [item["drawn_mask"] for _, item in items(dataset, range(4))]
    assert len({mask.numpy().tobytes() for mask in masks if mask.mean() < 1}) > 10
    assert all("image_pixels" in item and "masked_image" not in item for _, item in items(dataset, range(1)))
    _, repeated = samples(folder, parts, mask_variants=4)
    first = [item["drawn_mask"] for _, item in items(repeated, range(4))]
    assert all(map(torch.equal, masks, first))  # the first epochs are the same with and without variants


def test_any_number_of_processes_fills_the_same_cache(
    folder: Path, parts: ModelParts, tmp_path: Path
) -> None:
    settings = make_settings(folder)
    placed = read_data(Run(settings), folder=folder / "cache", inputs=INPUTS).train
    main = variant_keys(placed, "a", flip=True)
    keys = [drawn_keys(placed, main, INPUTS, settings.seed, variant) for variant in range(NUM_VARIANTS)]
    wanted = list(drawn_items(placed, keys, INPUTS, settings.seed))
    assert len({item.key for item in wanted}) == len(wanted) == NUM_VARIANTS * sum(map(len, main))

    def encode(pixel_values: torch.Tensor) -> torch.Tensor:
        return encode_images(parts.autoencoder, pixel_values)

    alone, shared = MomentsCache(tmp_path / "alone", "a"), MomentsCache(tmp_path / "shared", "a")
    alone.fill(wanted, encode)
    with pytest.raises(UserError, match="missing"):  # the other process has not yet done its share
        shared.fill(wanted, encode, rank=0, num_processes=2)
    shared.fill(wanted, encode, rank=1, num_processes=2)
    assert all(torch.equal(alone.read(item.key), shared.read(item.key)) for item in wanted)


def test_another_seed_or_variant_is_another_entry(folder: Path) -> None:
    placed = read_data(Run(make_settings(folder)), folder=folder / "cache", inputs=INPUTS).train
    main = variant_keys(placed, "a", flip=False)
    made = [drawn_keys(placed, main, INPUTS, seed, variant) for seed in (0, 1) for variant in (0, 1)]
    found = [key for keys in made for own in keys for key in own.values()]
    assert len(set(found)) == len(found)


def test_the_version_is_increased_when_the_masks_change() -> None:
    masks = [draw_mask((3, epoch, "a.png"), (32, 48))["mask"] for epoch in range(24)]
    digest = hashlib.sha256(torch.stack(masks).numpy().tobytes()).hexdigest()[:16]
    number = VERSION.partition(",")[0]
    assert (number, digest) == ("1", "cf02d1737df6e7c6"), "raise VERSION, unless Pillow draws other shapes"


def test_variants_of_a_task_without_masks_are_refused(folder: Path) -> None:
    with pytest.raises(UserError, match=r"cache\.mask_variants is for tasks with masks, which edit has not"):
        tree = make_settings(folder).model_dump() | {"task": "edit", "cache": {"mask_variants": 2}}
        validate(DenoiserSettings, tree)

"""Samples as training items: draws that are functions of their key alone."""

from itertools import combinations
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from ldm.data.batches import ImageSamples, LatentSamples, make_loader, pixel_batches, read_pixels
from ldm.data.captions import CaptionSettings
from ldm.data.order import BatchOrder, SampleKey
from ldm.data.prepare import BucketedSample, holdout_split
from tests.support.tiny_folders import prepare_folder
from tests.support.tiny_runs import write_squares


@pytest.fixture
def placed(tmp_path: Path) -> list[BucketedSample]:
    return prepare_folder(write_squares(tmp_path / "data")).placed


def latents(placed: list[BucketedSample], dropout: float = 0.0, **changes: object) -> LatentSamples:
    """Samples whose moments are filled with index, crop and flip."""

    def read(index: int, crop: int, flip: bool) -> Tensor:
        return torch.tensor([index, crop, int(flip), 0, 0, 0.0]).view(6, 1, 1).expand(6, 4, 4)

    captions = CaptionSettings(dropout=dropout)
    options = {"seed": 3, "captions": captions, "latent_channels": 3, "downscale": 4, **changes}
    return LatentSamples(placed, read, "moments", **options)  # type: ignore[arg-type]


def test_an_item_is_the_same_in_any_batch_worker_and_order(placed: list[BucketedSample]) -> None:
    dataset = ImageSamples(placed, seed=3, latent_channels=3, downscale=4)
    alone = dataset[SampleKey(2, 5)]
    dataset[SampleKey(2, 1)]
    loader = make_loader(dataset, BatchOrder(3, ["all"] * len(placed), 7, 2, 3), num_workers=1)
    (batch,) = list(loader)
    row = batch["sample_id"].index(alone["sample_id"])
    for name in ("pixel_values", "noise"):
        assert torch.equal(batch[name][row], alone[name])
    assert batch["caption"][row] == alone["caption"]
    assert alone["noise"].shape == (3, 4, 4)


def test_the_draws_change_with_the_epoch_and_the_sample(placed: list[BucketedSample]) -> None:
    dataset = latents(placed, dropout=0.5)
    items = [dataset[SampleKey(epoch, i)] for epoch in (0, 1) for i in (0, 1)]
    for name in ("noise", "posterior_noise"):
        assert len({item[name].sum().item() for item in items}) == 4
    assert len({item["position"] for item in items}) == 4
    captions = [dataset[SampleKey(epoch, 0)]["caption"] for epoch in range(100)]
    assert 30 < captions.count("") < 70
    assert set(captions) == {"", *placed[0].sample.captions}


def test_the_draws_of_one_item_are_independent(placed: list[BucketedSample]) -> None:
    item = latents(placed, extra_noise=True)[SampleKey(0, 0)]
    draws = [item[name].flatten() for name in ("noise", "posterior_noise", "perturbation", "offset")]
    firsts = [tuple(draw[:3].tolist()) for draw in draws]
    assert len(set(firsts)) == 4
    for one, two in combinations(draws[:3], 2):
        assert abs(torch.corrcoef(torch.stack([one, two]))[0, 1]) < 0.5


def test_a_mask_is_cropped_and_mirrored_like_its_image(tmp_path: Path) -> None:
    """An image that is its own mask, from black to white in steps."""
    ramp = Image.new("L", (40, 16))
    for column in range(40):
        ramp.paste(255 * (column // 4) // 10, (column, 0, column + 1, 16))
    for name in ("data", "masks"):
        (tmp_path / name).mkdir()
        ramp.convert("RGB" if name == "data" else "L").save(tmp_path / name / "a.png")
    (tmp_path / "data/a.txt").write_text("a ramp")
    source = {"path": str(tmp_path / "data"), "masks": str(tmp_path / "masks")}
    placed = prepare_source(source, crop_variants=3)
    options = {"seed": 3, "captions": CaptionSettings(), "latent_channels": 3, "downscale": 4}
    dataset = LatentSamples(placed, read_pixels(placed), "pixel_values", flip=True, masked=True, **options)  # type: ignore[arg-type]
    masks = set()
    for epoch in range(30):
        item = dataset[SampleKey(epoch, 0)]
        cells = torch.nn.functional.avg_pool2d((item["pixel_values"][:1] + 1) / 2, 4)
        torch.testing.assert_close(item["loss_mask"], cells, atol=0.02, rtol=0)
        masks.add(tuple(item["loss_mask"].flatten().tolist()))
    assert len(masks) > 3  # several crops, mirrored and not


def test_all_crops_are_drawn_and_samples_that_may_be_mirrored_are(tmp_path: Path) -> None:
    for name, caption in (("a", "an arrow to the left"), ("b", "a square")):
        Image.new("RGB", (40, 16), "red").save(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_text(caption)
    placed = prepare_folder(tmp_path, crop_variants=3).placed
    dataset = latents(placed, flip=True)
    turns = [[dataset[SampleKey(e, i)]["moments"][:3, 0, 0].tolist() for e in range(60)] for i in (0, 1)]
    assert {turn[1] for turn in turns[0]} == {0, 1, 2}
    assert sum(turn[2] for turn in turns[0]) == 0
    assert 15 < sum(turn[2] for turn in turns[1]) < 45


def test_weights_masks_and_extra_noise_are_included_when_asked_for(tmp_path: Path) -> None:
    image = Image.new("RGBA", (16, 16), (255, 0, 0, 255))
    image.paste((0, 0, 0, 0), (0, 0, 16, 8))
    image.save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("a square")
    source = {"path": str(tmp_path), "alpha_mask": True, "loss_weight": 0.5}
    placed = prepare_source(source)
    item = latents(placed, masked=True, extra_noise=True)[SampleKey(0, 0)]
    assert item["loss_weight"] == 0.5
    assert item["loss_mask"].shape == (1, 4, 4)
    assert item["loss_mask"][0, :, 0].tolist() == [0, 0, 1, 1]
    assert item["perturbation"].shape == (3, 4, 4) and item["offset"].shape == (3,)
    assert not torch.equal(item["perturbation"], item["noise"])


def prepare_source(source: dict[str, object], **settings: object) -> list[BucketedSample]:
    from ldm.data.prepare import DataSettings, prepare
    from ldm.data.sources.reading import read_sources
    from ldm.data.survey import survey

    data = DataSettings.model_validate({"sources": [source], "height": 16, "width": 16, **settings})
    reading = read_sources(data.all_sources())
    return prepare(reading, survey(reading.samples, None), data, multiple=4, seed=0).placed


def test_pixels_are_read_as_the_cache_reads_them(placed: list[BucketedSample]) -> None:
    read = read_pixels(placed)
    assert torch.equal(read(2, 0, True), placed[2].pixels().flip(-1))


def test_every_image_is_in_the_pixel_batches_once_and_in_order(tmp_path: Path) -> None:
    for number in range(7):
        Image.new("RGB", (16, 16) if number < 3 else (24, 12), (30 * number, 0, 0)).save(
            tmp_path / f"{number}.png"
        )
        (tmp_path / f"{number}.txt").write_text("x")
    placed = prepare_folder(tmp_path, buckets=True).placed
    batches = list(pixel_batches(placed, 2))
    assert sorted(len(batch) for batch in batches) == [1, 2, 2, 2]
    reds = [round((image[0, 0, 0].item() + 1) * 127.5) for batch in batches for image in batch]
    assert reds == [30 * number for number in range(7)]


def test_copies_of_an_image_are_held_out_together(tmp_path: Path) -> None:
    for number in range(60):
        Image.new("RGB", (16, 16), (4 * (number // 2), 0, 0)).save(tmp_path / f"{number:02d}.png")
        (tmp_path / f"{number:02d}.txt").write_text("x")
    placed = prepare_folder(tmp_path).placed
    train, held_out = holdout_split(placed, 0.3, seed=0)
    assert len(train) + len(held_out) == 60 and 5 < len(held_out) < 40
    assert not {p.facts.content_hash for p in train} & {p.facts.content_hash for p in held_out}
    fewer, _ = holdout_split(placed[20:], 0.3, seed=0)
    assert [p.sample.sample_id for p in fewer] == [p.sample.sample_id for p in train if p in placed[20:]]

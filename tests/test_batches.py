"""Order and draws: each sample once an epoch, the same for any number of processes, functions of their key alone."""

from pathlib import Path

import pytest
import torch

from ldm.data.batches import (
    BatchOrder,
    ImageSamples,
    ImageTransform,
    LatentSamples,
    SampleKey,
    batch_at,
    encode_samples,
    make_loader,
    steps_per_epoch,
)
from ldm.data.folder import read_folder
from ldm.data.sample import Sample
from tests.tiny_runs import write_squares


@pytest.fixture
def samples(tmp_path: Path) -> list[Sample]:
    return read_folder(write_squares(tmp_path / "data"))


def test_each_sample_is_seen_once_an_epoch_and_the_last_batch_is_smaller() -> None:
    assert steps_per_epoch(10, 4) == 3
    batches = [batch_at(step, seed=1, num_samples=10, global_batch_size=4) for step in range(6)]
    assert [len(b) for b in batches] == [4, 4, 2, 4, 4, 2]
    for epoch in (0, 1):
        keys = [key for batch in batches[3 * epoch : 3 * epoch + 3] for key in batch]
        assert sorted(key.sample_index for key in keys) == list(range(10))
        assert {key.epoch for key in keys} == {epoch}
    assert batches[0] != [k._replace(epoch=0) for k in batches[3]]


@pytest.mark.parametrize("num_processes", [1, 2, 3, 5])
def test_the_ranks_share_the_global_batch_of_one_process(num_processes: int) -> None:
    whole = list(BatchOrder(0, 10, 4, 0, 6))
    ranks = [
        list(BatchOrder(0, 10, 4, 0, 6, rank=r, num_processes=num_processes)) for r in range(num_processes)
    ]
    for step, batch in enumerate(whole):
        shared = [key for rank in ranks for key in rank[step]]
        assert all(rank[step] for rank in ranks)
        assert sorted(k for k in shared if k.weight) == sorted(batch)


def test_a_resumed_order_goes_on_where_it_stopped() -> None:
    assert list(BatchOrder(0, 10, 4, 0, 9))[5:] == list(BatchOrder(0, 10, 4, 5, 9))


def test_an_item_is_the_same_in_any_batch_worker_and_order(samples: list[Sample]) -> None:
    moments = torch.randn(len(samples), 2, 6, 4, 4)
    dataset = LatentSamples(samples, moments, seed=3, caption_dropout=0.5)
    alone = dataset[SampleKey(2, 5)]
    dataset[SampleKey(2, 1)]
    loader = make_loader(dataset, BatchOrder(3, len(samples), 7, 2, 3), num_workers=1)
    (batch,) = list(loader)
    row = batch["sample_id"].index(alone["sample_id"])
    for name in ("moments", "posterior_noise", "noise"):
        assert torch.equal(batch[name][row], alone[name])
    assert batch["position"][row] == pytest.approx(alone["position"], abs=1e-7)
    assert batch["caption"][row] == alone["caption"]


def test_the_draws_change_with_the_epoch_and_the_sample(samples: list[Sample]) -> None:
    dataset = LatentSamples(samples, torch.zeros(len(samples), 1, 6, 4, 4), seed=3, caption_dropout=0.5)
    noises = [dataset[SampleKey(epoch, i)]["noise"] for epoch in (0, 1) for i in (0, 1)]
    assert len({n.sum().item() for n in noises}) == 4
    captions = [dataset[SampleKey(epoch, 0)]["caption"] for epoch in range(100)]
    assert 30 < captions.count("") < 70
    assert set(captions) == {"", *samples[0].captions}


def test_only_samples_that_may_be_are_mirrored(tmp_path: Path) -> None:
    data = write_squares(tmp_path / "data")
    plain = read_folder(data)
    kept = [Sample(s.sample_id, s.image, s.captions, may_flip=i != 0) for i, s in enumerate(plain)]
    moments = torch.arange(2.0).view(1, 2, 1, 1, 1).expand(len(kept), 2, 2, 1, 1)
    dataset = LatentSamples(kept, moments, seed=0, caption_dropout=0.0)
    variants = [[dataset[SampleKey(e, i)]["moments"][0].item() for e in range(60)] for i in (0, 1)]
    assert sum(variants[0]) == 0
    assert 15 < sum(variants[1]) < 45


def test_moments_are_those_of_each_image_as_it_is_and_mirrored(samples: list[Sample]) -> None:
    transform = ImageTransform(16, 16)
    moments = encode_samples(
        samples, transform, lambda pixels: pixels[:, :2, ::8, ::8], flip=True, batch_size=3
    )
    assert moments.shape == (7, 2, 2, 2, 2)
    assert torch.equal(moments[4, 0], transform(samples[4])[:2, ::8, ::8])
    assert torch.equal(moments[4, 1], transform(samples[4], flip=True)[:2, ::8, ::8])


def test_image_samples_draw_noise_of_the_shape_asked_for(samples: list[Sample]) -> None:
    dataset = ImageSamples(samples, ImageTransform(8, 12), seed=0, noise_shape=(3, 2, 2))
    item = dataset[SampleKey(0, 2, weight=0.0)]
    assert item["pixel_values"].shape == (3, 8, 12)
    assert item["noise"].shape == (3, 2, 2)
    assert item["weight"] == 0.0

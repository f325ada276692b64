"""Training data sets can be pickled, so loader processes work with any start method."""

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from ldm.config import validate
from ldm.data.order import SampleKey
from ldm.data.streaming import StreamedSamples
from ldm.models.loading.model import ModelParts
from tests.support.tiny_models import make_sd1
from tests.support.tiny_runs import COMMON, write_squares
from tests.support.tiny_streams import first, make_stream, write_shards
from train.data.latents import image_readers, latent_samples
from train.data.read import read_data
from train.run.run import Run
from train.settings.denoiser import DenoiserSettings


@pytest.fixture
def parts(tmp_path: Path) -> ModelParts:
    return make_sd1(tmp_path / "tokenizer")


def make_run(folder: Path, cached: bool) -> tuple[Run, DenoiserSettings]:
    data = write_squares(folder / "data")
    tree = {**COMMON, "program": "denoiser", "base": "emoji", "run_dir": str(folder / "run")}
    cache = {"enabled": cached, "folder": str(folder / "cache")}
    size = {"path": str(data), "height": 16, "width": 16, "flip": True}
    settings = validate(DenoiserSettings, {**tree, "cache": cache, "data": size})
    return Run(settings), settings


def assert_equal(one: dict[str, Any], two: dict[str, Any]) -> None:
    assert one.keys() == two.keys()
    for name, value in one.items():
        assert torch.equal(value, two[name]) if isinstance(value, torch.Tensor) else value == two[name]


@pytest.mark.parametrize("cached", [True, False])
def test_an_unpickled_dataset_has_equal_items(tmp_path: Path, parts: ModelParts, cached: bool) -> None:
    run, settings = make_run(tmp_path, cached)
    placed = read_data(run, folder=tmp_path / "cache").train
    images = image_readers(run, placed, parts.autoencoder, settings)
    for first_number, samples in ((0, placed), (2, placed[2:])):
        dataset = latent_samples(settings, parts.autoencoder, samples, images.starting_at(first_number))
        travelled = pickle.loads(pickle.dumps(dataset))
        for index in range(len(samples)):
            assert_equal(travelled[SampleKey(1, index)], dataset[SampleKey(1, index)])
    assert ("moments" in dataset[SampleKey(0, 0)]) == cached


def test_an_unpickled_streamed_dataset_has_equal_items(tmp_path: Path, parts: ModelParts) -> None:
    run, settings = make_run(tmp_path, cached=False)
    images = image_readers(run, (), parts.autoencoder, settings)
    dataset = StreamedSamples(latent_samples(settings, parts.autoencoder, (), images))
    travelled = pickle.loads(pickle.dumps(dataset))
    (tmp_path / "shards").mkdir()
    ((_, turns),) = first(make_stream(write_shards(tmp_path / "shards")), 1)
    for turn in pickle.loads(pickle.dumps(turns)):
        assert_equal(travelled[turn], dataset[turn])

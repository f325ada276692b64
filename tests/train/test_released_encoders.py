"""Encoders leave the device once their outputs are cached. The device here is `meta`, which holds no values."""

import gc
import weakref
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from ldm.config import load_settings
from ldm.data.prepare import BucketedSample
from ldm.models.devices import lent
from ldm.models.loading.model import save_parts
from ldm.models.parts import ModelParts
from tests.support.tiny_models import make_sdxl
from tests.support.tiny_runs import COMMON, write_squares
from train.data.latents import cached_prompts, image_readers
from train.data.read import read_data
from train.run.denoiser_model import make_loss
from train.run.run import Run
from train.settings.denoiser import DenoiserSettings

META = torch.device("meta")


def places(network: nn.Module) -> dict[str, tuple[str, int]]:
    """The device and the address of every tensor."""
    tensors = [*network.named_parameters(), *network.named_buffers()]
    return {name: (tensor.device.type, tensor.data_ptr()) for name, tensor in tensors}


def test_a_lent_network_has_its_own_tensors_again() -> None:
    network = nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3))
    network.register_buffer("numbers", torch.arange(3), persistent=False)
    before, values = places(network), {name: each.clone() for name, each in network.state_dict().items()}
    with pytest.raises(KeyError), lent(network, META):
        assert {device for device, _ in places(network).values()} == {"meta"}
        there = [weakref.ref(parameter) for parameter in network.parameters()]
        raise KeyError
    gc.collect()
    assert places(network) == before and all(each() is None for each in there)
    assert all(torch.equal(each, values[name]) for name, each in network.state_dict().items())


@pytest.fixture(scope="module")
def cached(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[DenoiserSettings, ModelParts, list[BucketedSample]]:
    """Settings, a model of SDXL and samples, all of whose latents and embeddings are in the cache."""
    folder = tmp_path_factory.mktemp("released")
    save_parts(make_sdxl(folder / "tokenizers"), folder / "base")
    tree: dict[str, Any] = {
        **COMMON,
        "program": "denoiser",
        "base": str(folder / "base"),
        "run_dir": str(folder / "run"),
        "data": {"path": str(write_squares(folder / "data")), "height": 16, "width": 16},
        "cache": {"folder": str(folder / "cache")},
    }
    (folder / "x.yaml").write_text(yaml.safe_dump(tree))
    settings = load_settings(DenoiserSettings, folder / "x.yaml")
    run, parts = Run(settings), make_loss(settings).parts
    placed = list(read_data(run, folder=folder / "cache").train)
    image_readers(run, placed, parts.autoencoder, settings)
    assert cached_prompts(run, placed, parts.text_encoder, settings) is not None
    return settings, parts, placed


def test_autoencoder_and_both_text_encoders_are_not_on_the_device_in_training(
    cached: tuple[DenoiserSettings, ModelParts, list[BucketedSample]], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, parts, placed = cached
    before = [places(each) for each in (parts.autoencoder, parts.text_encoder)]
    run = Run(settings)
    monkeypatch.setattr(Run, "device", META)
    readers = image_readers(run, placed, parts.autoencoder, settings)
    prompts = cached_prompts(run, placed, parts.text_encoder, settings)
    assert [places(each) for each in (parts.autoencoder, parts.text_encoder)] == before
    assert prompts is not None and prompts(["red"]).prompt_embeds.any()  # values, which meta has not
    assert readers.main(0, 0, False).any()


def test_without_the_cache_they_stay_there(
    cached: tuple[DenoiserSettings, ModelParts, list[BucketedSample]], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, _, placed = cached
    own = settings.model_copy(update={"cache": settings.cache.model_copy(update={"enabled": False})})
    run, parts = Run(own), make_loss(own).parts
    monkeypatch.setattr(Run, "device", META)
    image_readers(run, placed, parts.autoencoder, own)
    assert cached_prompts(run, placed, parts.text_encoder, own) is None
    for encoder in (parts.autoencoder, parts.text_encoder):
        assert {device for device, _ in places(encoder).values()} == {"meta"}

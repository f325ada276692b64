"""Decoding within the memory there is: the same images, and tiles only if a single one does not fit."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ldm.errors import LdmWarning
from ldm.models.vae import TILE_LATENTS, KLAutoencoder
from ldm.pipeline import decoding
from ldm.pipeline.decoding import decode_images, encode_images, free_memory_bytes
from ldm.pipeline.pipeline import Pipeline
from tests.support.tiny_images import photo
from tests.support.tiny_models import make_sd1
from tests.support.tiny_tasks import make_labelled


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    return Pipeline(make_sd1(tmp_path_factory.mktemp("tokenizer")))


def with_memory(monkeypatch: pytest.MonkeyPatch, num_bytes: float) -> None:
    monkeypatch.setattr(decoding, "free_memory_bytes", lambda device: num_bytes)


def watch(monkeypatch: pytest.MonkeyPatch, autoencoder: KLAutoencoder) -> list[int]:
    """The number of images in each call of the decoder."""
    calls: list[int] = []
    decode = autoencoder.vae.decoder.forward

    def watched(latents: torch.Tensor, *args: Any) -> Any:
        calls.append(len(latents))
        return decode(latents, *args)

    monkeypatch.setattr(autoencoder.vae.decoder, "forward", watched)
    return calls


def test_as_many_at_once_as_fit_in_half_of_the_memory(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    autoencoder = pipeline.autoencoder
    latents = torch.randn(5, autoencoder.num_channels, 4, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole, _ = decode_images(autoencoder, latents)
        calls = watch(monkeypatch, autoencoder)
        with_memory(monkeypatch, 2 * 2.5 * autoencoder.decoding_bytes(4, 4))
        pieces, in_tiles = decode_images(autoencoder, latents)
        decode_images(autoencoder, latents, one_by_one=True)
    assert calls == [2, 2, 1] + [1] * 5
    assert not in_tiles
    for one, other in zip(whole, pieces, strict=True):
        assert np.abs(np.asarray(one, float) - np.asarray(other, float)).max() <= 1


@pytest.mark.filterwarnings("ignore:.* far from this model.s own:ldm.errors.LdmWarning")
def test_an_image_that_does_not_fit_is_decoded_in_tiles_with_a_warning(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = (TILE_LATENTS + 8) * pipeline.autoencoder.pixels_per_latent
    given: dict[str, Any] = {"seed": 3, "num_inference_steps": 1, "height": 16, "width": size}
    whole = pipeline.generate("", **given)
    with_memory(monkeypatch, 300_000.0)
    with pytest.warns(LdmWarning, match=r"needs about .* GB to decode, so it is decoded in tiles") as told:
        tiled = pipeline.generate("", **given)
    ours = [each for each in told if each.category is LdmWarning and "tiles" in str(each.message)]
    assert [Path(each.filename).name for each in ours] == [Path(__file__).name]
    assert tiled.settings == [{**whole.settings[0], "decoded_in_tiles": True}]
    assert tiled.images[0].size == whole.images[0].size
    assert torch.equal(tiled.latents, whole.latents)
    difference = np.asarray(tiled.images[0], float) - np.asarray(whole.images[0], float)
    assert 0 < np.abs(difference).mean() < 30, "the tiles of a random decoder differ in their normalisation"


@pytest.mark.filterwarnings("ignore:.* far from this model.s own:ldm.errors.LdmWarning")
@pytest.mark.filterwarnings("ignore:an image needs about .* to decode:ldm.errors.LdmWarning")
@pytest.mark.parametrize("task", ["image-to-image", "restore"])
def test_an_image_given_that_does_not_fit_is_encoded_in_tiles_with_a_warning(
    task: str, pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In place of the whole image, no call of the encoder gets more than a tile."""
    model = pipeline if task != "restore" else Pipeline(make_labelled(tmp_path, task))
    multiple = model.autoencoder.pixels_per_latent
    width = (TILE_LATENTS + 8) * multiple
    given: dict[str, Any] = {"image": photo(width, 16), "seed": 3, "num_inference_steps": 2}
    given |= {"tile_size": 0} if task == "restore" else {"strength": 0.5}
    whole = model.generate("", **given)
    seen, encode = [], model.autoencoder.vae.encoder.forward

    def watched(pixels: torch.Tensor) -> Any:
        seen.append(pixels.shape[-1])
        return encode(pixels)

    monkeypatch.setattr(model.autoencoder.vae.encoder, "forward", watched)
    with_memory(monkeypatch, 2 * model.autoencoder.encoding_bytes(16 // multiple, TILE_LATENTS + 8) - 2)
    with pytest.warns(
        LdmWarning, match=r"an image given needs about .* GB to encode, so it is encoded in tiles"
    ):
        tiled = model.generate("", **given)
    assert len(seen) > 1 and max(seen) == TILE_LATENTS * multiple
    assert tiled.settings[0].get("encoded_in_tiles") is True and "encoded_in_tiles" not in whole.settings[0]
    assert tiled.images[0].size == whole.images[0].size
    difference = (tiled.latents - whole.latents).abs().mean()
    assert 0 < difference < float("inf"), "the tiles of an encoder differ in their normalisation"


def test_images_given_are_encoded_as_many_at_once_as_fit(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    autoencoder = pipeline.autoencoder
    pixels = torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    small = 8 // autoencoder.pixels_per_latent
    with torch.no_grad():
        whole = encode_images(autoencoder, pixels)
        seen, encode = [], autoencoder.vae.encoder.forward

        def watched(part: torch.Tensor) -> Any:
            seen.append(len(part))
            return encode(part)

        monkeypatch.setattr(autoencoder.vae.encoder, "forward", watched)
        with_memory(monkeypatch, 2 * 2.5 * autoencoder.encoding_bytes(small, small))
        torch.testing.assert_close(encode_images(autoencoder, pixels), whole)
        encode_images(autoencoder, pixels, one_by_one=True)
    assert seen == [2, 2, 1] + [1] * 5


def test_an_image_of_one_tile_is_decoded_at_once_with_any_memory(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    latents = pipeline.generate("", num_images=2, num_inference_steps=1).latents
    with_memory(monkeypatch, 0.0)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("error", LdmWarning)
        images, in_tiles = decode_images(pipeline.autoencoder, latents)
    assert len(images) == 2 and not in_tiles


def test_the_estimate_is_of_the_last_level(pipeline: Pipeline) -> None:
    autoencoder = pipeline.autoencoder
    channels = autoencoder.vae.config.block_out_channels[1]
    pixels = 4 * 6 * autoencoder.pixels_per_latent**2
    assert autoencoder.decoding_bytes(4, 6) == 4 * channels * pixels * 4


def test_free_memory_is_what_the_system_says() -> None:
    assert 2**20 < free_memory_bytes(torch.device("cpu")) < float("inf")

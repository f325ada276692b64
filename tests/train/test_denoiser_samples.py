"""The denoiser is trained and measured on each sample's own image and caption, mirrored if requested."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from ldm.config import validate
from ldm.data.order import SampleKey
from ldm.diffusion.path import DDPMPath, ScheduleSettings
from ldm.models.clip import ClipTextEncoder
from ldm.models.clip_vocabulary import learn_merges, make_tokenizer
from ldm.models.loading.model import ModelParts
from ldm.tasks.text_to_image import TextToImage
from tests.support.tiny_models import CONTEXT_LENGTH, make_sd1
from tests.support.tiny_runs import COMMON, write_squares
from train.data import denoiser_data
from train.data.latents import cached_texts, image_readers, latent_samples, text_encoder_hash
from train.data.read import TrainingData, read_data
from train.loop.denoiser_loss import DenoiserLoss
from train.loop.validation import ValidationSamples
from train.run.run import Run
from train.settings.denoiser import DenoiserSettings

TAGS = "a, b, c, d, e, f, g"
"""Six tags that move: more orders than are listed."""


@pytest.fixture
def parts(tmp_path: Path) -> ModelParts:
    return make_sd1(tmp_path / "tokenizer")


def read(folder: Path, data: dict[str, Any], **changes: Any) -> tuple[Run, DenoiserSettings, TrainingData]:
    tree = {**COMMON, "program": "denoiser", "base": "emoji", "run_dir": str(folder / "run")}
    cache = {"enabled": False, "folder": str(folder / "cache")}
    data = {"path": str(folder / "data"), "height": 16, "width": 16, **data}
    settings = validate(DenoiserSettings, {**tree, "cache": cache, "data": data, **changes})
    run = Run(settings)
    return run, settings, read_data(run, folder=folder / "cache")


def write_tagged(folder: Path) -> None:
    folder.mkdir()
    for number in range(4):
        Image.new("RGB", (16, 16), (60 * number, 0, 0)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(TAGS)


def measured(
    run: Run,
    settings: DenoiserSettings,
    data: TrainingData,
    parts: ModelParts,
    monkeypatch: pytest.MonkeyPatch,
) -> ValidationSamples:
    """The samples that the held-out loss is measured on."""
    seen: list[ValidationSamples] = []
    monkeypatch.setattr(
        denoiser_data, "held_out_loss", lambda module, samples, **_: seen.append(samples) or {}
    )
    module = DenoiserLoss(parts, settings, DDPMPath(ScheduleSettings()), [])
    images = image_readers(run, [*data.train, *data.held_out], parts.autoencoder, settings)
    validate_now = denoiser_data.validation(run, settings, module, data, images)
    validate_now(run.start(torch.nn.Linear(1, 1)))
    (samples,) = seen
    return samples


def test_held_out_samples_are_measured_with_their_own_image_and_caption(
    tmp_path: Path, parts: ModelParts, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_squares(tmp_path / "data")
    changes = {"validation": {"every": 1}, "captions": {"dropout": 1.0, "prefix": "photo of"}}
    run, settings, data = read(tmp_path, {"holdout_fraction": 0.5}, **changes)
    assert len(data.train) > 1 and len(data.held_out) > 1
    samples = measured(run, settings, data, parts, monkeypatch)
    for index, one in enumerate(data.held_out):
        for item in samples[SampleKey(0, index)]:
            assert item["sample_id"] == one.sample.sample_id
            assert torch.equal(item["pixel_values"], one.pixels())
            assert item["caption"] == f"photo of {one.sample.text}"


def test_many_tags_are_measured_and_drawn_as_they_are_trained(
    tmp_path: Path, parts: ModelParts, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tagged(tmp_path / "data")
    captions = {"shuffle_tags": True, "prefix": "photo of", "suffix": ", by night"}
    changes = {"validation": {"every": 1}, "captions": captions}
    run, settings, data = read(tmp_path, {"holdout_fraction": 0.5}, **changes)
    samples = measured(run, settings, data, parts, monkeypatch)
    assert set(samples.captions) == {f"photo of {TAGS}, by night"}
    assert set(denoiser_data.preview_inputs(settings, data.train, TextToImage()).prompts) == {
        f"photo of {TAGS}, by night"
    }


@pytest.mark.parametrize("every", [0, 1])
def test_what_is_measured_is_cached_where_training_drops_every_caption(tmp_path: Path, every: int) -> None:
    write_squares(tmp_path / "data")
    changes = {"captions": {"dropout": 1.0}, "validation": {"every": every}, "cache": {"enabled": True}}
    _, settings, data = read(tmp_path, {"holdout_fraction": 0.5}, **changes)
    texts = cached_texts([*data.train, *data.held_out], settings)
    assert texts is not None and "" in texts
    assert {one.sample.text for one in data.held_out} <= texts if every else texts == {""}


@pytest.mark.parametrize("flip", [True, False])
def test_images_are_mirrored_where_it_is_asked_for(tmp_path: Path, parts: ModelParts, flip: bool) -> None:
    (tmp_path / "data").mkdir()
    image = Image.new("RGB", (16, 16), "red")
    image.paste("blue", (0, 0, 8, 16))
    image.save(tmp_path / "data/a.png")
    (tmp_path / "data/a.txt").write_text("a flag")
    run, settings, data = read(tmp_path, {"flip": flip})
    images = image_readers(run, data.train, parts.autoencoder, settings)
    dataset = latent_samples(settings, parts.autoencoder, data.train, images)
    shown = [dataset[SampleKey(epoch, 0)]["pixel_values"] for epoch in range(20)]
    mirrored = [torch.equal(pixels, data.train[0].pixels(0, True)) for pixels in shown]
    assert (0 < sum(mirrored) < 20) == flip and (flip or not any(mirrored))


def test_another_vocabulary_padding_or_number_of_chunks_is_another_encoder(parts: ModelParts) -> None:
    model = parts.text_encoder.model
    known = {text_encoder_hash(parts.text_encoder, num_chunks) for num_chunks in (1, 2, 3)}
    other_words = make_tokenizer(learn_merges(["quite other words"], 30), CONTEXT_LENGTH)
    known.add(text_encoder_hash(ClipTextEncoder(other_words, model), 1))
    padded = copy.deepcopy(parts.text_encoder.tokenizer)
    padded.pad_token = "!"
    known.add(text_encoder_hash(ClipTextEncoder(padded, model), 1))
    assert len(known) == 5
    assert text_encoder_hash(parts.text_encoder, 1) in known


def test_one_image_and_captions_that_are_cut_are_told(
    tmp_path: Path, parts: ModelParts, capsys: pytest.CaptureFixture[str]
) -> None:
    """A caption has room for 14 tokens; `prefix` counts as well, and captions other than the first."""
    folder = tmp_path / "data"
    folder.mkdir()
    Image.new("RGB", (16, 16)).save(folder / "a.png")
    long = "a red apple on a table and the large blue square"
    row = {"file_name": "a.png", "text": "a red apple", "captions": [long]}
    (folder / "metadata.jsonl").write_text(json.dumps(row))
    _, settings, data = read(tmp_path, {}, captions={"prefix": "photo"})
    denoiser_data.warn_data(settings, data, parts.text_encoder)
    said = capsys.readouterr().err
    assert "only one image to train on" in said
    assert "1 of 2 captions are longer than 16 tokens" in said and "square' is not read" in said
    _, settings, data = read(tmp_path, {}, prompt_chunks=3)
    denoiser_data.warn_data(settings, data, parts.text_encoder)
    assert "are cut" not in capsys.readouterr().err

"""A learned variance is left out for readers that know none, and every image that ignores it stays the same."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel

from ldm.diffusion.path import DDPMPath, ScheduleSettings
from ldm.export.artefact import for_readers
from ldm.export.export_options import ExportOptions
from ldm.export.export_source import load_source
from ldm.models.loading.model import ModelParts, load_parts, save_parts
from ldm.models.mean_only import learns_variance, strip_variance
from ldm.models.unet import UNetDenoiser
from ldm.pipeline.pipeline import Pipeline
from tests.support.tiny_models import make_sd1


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with a learned variance."""
    folder = tmp_path_factory.mktemp("variance")
    parts = make_sd1(folder / "tokenizer")
    torch.manual_seed(0)
    known = {key: value for key, value in parts.denoiser.unet.config.items() if not key.startswith("_")}
    unet = UNet2DConditionModel(**{**known, "out_channels": 8})
    parts.denoiser = UNetDenoiser(unet.eval())
    settings = ScheduleSettings(learn_variance=True, beta_end=0.011)
    parts.scheduler_config = DDPMPath(settings).scheduler_config()
    save_parts(parts, folder / "model")
    return folder / "model"


def pixels(parts: ModelParts, scheduler: str) -> torch.Tensor:
    made = Pipeline(parts).generate(["a red apple"], seed=3, scheduler=scheduler, num_inference_steps=3)
    return torch.from_numpy(np.asarray(made.images[0], dtype=np.int16))


def test_samplers_that_ignore_the_variance_make_the_same_image(folder: Path, tmp_path: Path) -> None:
    parts = load_parts(folder)
    expected = [pixels(parts, name) for name in ("ddim", "dpmpp_2m")]
    strip_variance(parts)
    save_parts(parts, tmp_path / "plain")
    plain = load_parts(tmp_path / "plain")
    assert not learns_variance(plain) and plain.denoiser.unet.config.out_channels == 4
    config = plain.scheduler_config
    assert "variance_type" not in config and config["beta_end"] == 0.011
    for name, before in zip(("ddim", "dpmpp_2m"), expected, strict=True):
        assert int((pixels(plain, name) - before).abs().max()) <= 1


@pytest.mark.parametrize(
    ("options", "stripped"),
    [
        ({}, False),
        ({"strip_variance": True}, True),
        ({"format": "single-file"}, True),
        ({"format": "openvino"}, False),
    ],
    ids=["diffusers", "asked for", "single file", "openvino"],
)
def test_a_format_that_knows_no_variance_gets_none(
    folder: Path, options: dict[str, Any], stripped: bool
) -> None:
    said: list[str] = []
    source = for_readers(load_source(folder), ExportOptions(**options), said.append)
    assert learns_variance(source.parts) is not stripped
    assert bool(said) is stripped
    source.release()  # and loaded again
    assert learns_variance(source.weights()) is not stripped


def test_a_model_without_a_variance_is_exported_as_it_is(tmp_path: Path) -> None:
    save_parts(make_sd1(tmp_path / "tokenizer"), tmp_path / "model")
    source, said = load_source(tmp_path / "model"), list[str]()
    assert for_readers(source, ExportOptions(format="single-file"), said.append) is source and not said

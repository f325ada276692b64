"""Reuse of deep features on OpenVINO: same images as torch, from separately cached networks."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from ldm.cli.app import app
from ldm.generation.work import work_of
from ldm.models.engines.feature_reuse import SplitUNet
from ldm.models.generation_settings import GenerationSettings
from ldm.models.loading.model import ModelParts
from ldm.pipeline.batches import Prompt, list_images
from ldm.pipeline.engine_choice import Work, choose_engine, converted_folder
from ldm.pipeline.pipeline import Pipeline
from ldm.pipeline.record import read_settings
from ldm.types import Conditioning
from tests.support.tiny_models import make_sd1, make_sd2

pytestmark = [
    pytest.mark.openvino,
    pytest.mark.skipif(find_spec("openvino") is None, reason="openvino is not installed"),
]

REUSING = Work(num_rows=1, height=8, width=8, num_tokens=16, reuses_features=True)
SETTINGS: dict[str, Any] = {"num_inference_steps": 6, "guidance_scale": 3.0, "seed": 7}


@pytest.fixture(
    scope="module",
    params=[make_sd1, pytest.param(make_sd2, marks=pytest.mark.slow)],
    ids=["epsilon", "v"],
)
def parts(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ModelParts:
    made: ModelParts = request.param(tmp_path_factory.mktemp("tokenizer"))
    return made


@pytest.mark.parametrize("interval", [(0.0, 1.0), (0.0, 0.5)])
def test_images_match_torch(parts: ModelParts, interval: tuple[float, float]) -> None:
    pipeline = Pipeline(parts)
    settings = {**SETTINGS, "guidance_interval": interval, "deep_features_every": 3}
    expected = pipeline.generate(["a red apple", "the blue square"], **settings).latents
    plain = pipeline.generate(["a red apple", "the blue square"], **SETTINGS).latents
    pipeline.engine = choose_engine("openvino", pipeline.denoiser, REUSING)
    made = pipeline.generate(["a red apple", "the blue square"], **settings)
    assert (made.latents - expected).abs().max() < 1e-3 * expected.std()
    assert (plain - expected).abs().max() > 1e-2 * expected.std()
    assert {settings["engine"] for settings in made.settings} == {"openvino"}
    whole = pipeline.generate(["a red apple", "the blue square"], **SETTINGS)  # with the same networks
    assert (whole.latents - plain).abs().max() < 1e-3 * plain.std()


@pytest.mark.parametrize("size", [(8, 8), (7, 10)])
def test_the_passes_match_torch_at_every_size(parts: ModelParts, size: tuple[int, int]) -> None:
    engine = choose_engine("openvino", parts.denoiser, REUSING)
    assert engine is not None
    assert engine.passes is not None
    generator = torch.Generator().manual_seed(3)
    latents = torch.randn(3, 4, *size, generator=generator)
    embeds = Conditioning(torch.randn(3, 16, parts.denoiser.text_width, generator=generator))
    given = latents, torch.tensor([900, 500, 1]), embeds
    expected, deep = SplitUNet(parts.denoiser.unet).full(*given)
    output, there = engine.passes.full(*given)
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(there, deep, rtol=0, atol=1e-4)
    torch.testing.assert_close(
        engine.passes.shallow(*given, 2 * there),
        SplitUNet(parts.denoiser.unet).shallow(*given, 2 * deep),
        rtol=0,
        atol=1e-4,
    )


def test_whole_and_split_networks_are_cached_separately(parts: ModelParts) -> None:
    folders = [converted_folder(parts.denoiser, in_passes=in_passes) for in_passes in (False, True)]
    assert folders[0] != folders[1]


def test_the_preset_on_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Pipeline(make_sd1(tmp_path)).save("model")
    for output, arguments in {
        "first": ["a red apple", "--engine", "openvino", "--preset", "fast"],
        "again": ["--reproduce", "first/0001-a-red-apple-s0.png"],
    }.items():
        result = CliRunner().invoke(app, ["generate", *arguments, "--model", "model", "--output", output])
        assert (result.exit_code, result.stderr) == (0, "")
    pngs = [next((tmp_path / output).glob("*.png")) for output in ("first", "again")]
    assert pngs[0].read_bytes() == pngs[1].read_bytes()
    assert read_settings(pngs[0])["deep_features_every"] == 3


def test_work_accounts_for_skipped_layers(tmp_path: Path) -> None:
    pipeline = Pipeline(make_sd1(tmp_path))

    def work(**settings: Any) -> Work:
        return work_of(
            pipeline,
            list_images([Prompt("a", GenerationSettings(num_inference_steps=12, **settings))]),
        )

    assert (work().num_rows, work().reuses_features) == (24, False)
    assert work(guidance_interval=(0.0, 0.5)).num_rows == 18
    assert work(guidance_interval=(5.0, 0.3)).num_rows == 24
    fast = work(guidance_interval=(0.0, 0.5), deep_features_every=3)
    assert (fast.num_rows, fast.reuses_features) == (6, True)
    assert work(guidance_scale=1.0, guidance_interval=(0.0, 0.5)).num_rows == 12

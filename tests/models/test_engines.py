"""The engine openvino: same outputs as torch at every size, correct cached weights, and the choice of `auto`."""

import shutil
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from ldm import LdmWarning, UserError
from ldm.cli.app import app
from ldm.models.engines import openvino_denoiser as engines
from ldm.models.engines import openvino_network
from ldm.models.engines.openvino_denoiser import MODEL_FILE, OpenVINODenoiser, is_converted, openvino_denoiser
from ldm.models.engines.openvino_network import SizedNetwork, compile_network, import_openvino
from ldm.pipeline.engine_choice import Work, choose_engine, converted_folder
from ldm.pipeline.pipeline import Pipeline
from ldm.pipeline.record import read_settings
from ldm.types import Conditioning, Denoiser
from tests.support.tiny_models import make_sd1, make_sd2, make_sdxl
from tests.support.tiny_task_models import make_task_model

pytestmark = [
    pytest.mark.openvino,
    pytest.mark.skipif(find_spec("openvino") is None, reason="openvino is not installed"),
]

NO_WORK = Work(num_rows=1, height=8, width=8, num_tokens=16)
PROMPTS = ["a red apple", "the blue square"]


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    return Pipeline(make_sd1(tmp_path_factory.mktemp("tokenizer")), model_id="tiny")


@pytest.fixture(scope="module")
def engine(pipeline: Pipeline) -> OpenVINODenoiser:
    """The engine of `pipeline`, converted in the tests' cache."""
    chosen = choose_engine("openvino", pipeline.denoiser, NO_WORK)
    assert chosen is not None
    return chosen


def output(denoiser: Denoiser, num_rows: int, height: int, width: int, num_tokens: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    latents = torch.randn(num_rows, 4, height, width, generator=generator)
    embeds = torch.randn(num_rows, num_tokens, 32, generator=generator)
    return denoiser(latents, torch.linspace(999, 0, num_rows), Conditioning(embeds))


@pytest.mark.parametrize(
    "sizes", [(4, 8, 8, 16), (2, 8, 8, 16), (1, 7, 10, 16), (3, 6, 9, 48), (4, 8, 8, 16)]
)
def test_outputs_match_torch_at_every_size(
    pipeline: Pipeline, engine: OpenVINODenoiser, sizes: tuple[int, int, int, int]
) -> None:
    expected = output(pipeline.denoiser, *sizes)
    assert (output(engine, *sizes) - expected).abs().max() < 1e-4 * expected.std()


def test_a_large_network_is_compiled_once_for_all_batches(
    pipeline: Pipeline, engine: OpenVINODenoiser, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[list[int]] = []

    def compile_and_note(model: Any) -> Any:
        compiled.append([port.get_partial_shape()[0].get_length() for port in model.inputs])
        return compile_network(model)

    monkeypatch.setattr(openvino_network, "compile_network", compile_and_note)
    large = OpenVINODenoiser(SizedNetwork(converted_folder(pipeline.denoiser), large_bytes=0))
    for num_rows in (4, 2, 1):
        expected = output(pipeline.denoiser, num_rows, 8, 8, 16)
        assert (output(large, num_rows, 8, 8, 16) - expected).abs().max() < 1e-4 * expected.std()
    assert compiled == [[1, 1, 1]]


def test_images_match_torch_and_record_the_engine(pipeline: Pipeline, engine: OpenVINODenoiser) -> None:
    asked: dict[str, Any] = {"num_images": 2, "num_inference_steps": 20, "guidance_scale": 5.0}
    expected = pipeline.generate(PROMPTS, **asked)
    pipeline.engine = engine
    made, alone = pipeline.generate(PROMPTS, **asked), pipeline.generate(PROMPTS[1:], **asked)
    pipeline.engine = None
    deviation = expected.latents.std()
    assert 0 < (made.latents - expected.latents).abs().max() < 1e-3 * deviation
    assert (alone.latents - made.latents[2:]).abs().max() < 1e-3 * deviation
    for settings, other in zip(made.settings, expected.settings, strict=True):
        assert (settings.pop("engine"), other.pop("engine")) == ("openvino", "torch")
        assert settings["versions"].pop("openvino")
        assert settings == other


def test_the_cache_recognizes_only_the_same_weights(tmp_path: Path, engine: OpenVINODenoiser) -> None:
    denoiser = make_sd1(tmp_path).denoiser  # the same as `pipeline`
    folder = converted_folder(denoiser)
    written = (folder / MODEL_FILE).stat()
    choose_engine("openvino", denoiser, NO_WORK)
    assert (folder / MODEL_FILE).stat() == written
    denoiser.unet.conv_out.bias[0] += 1
    assert converted_folder(denoiser) != folder
    assert not is_converted(converted_folder(denoiser))


@pytest.mark.slow
def test_changed_weights_are_converted_again(tmp_path: Path, engine: OpenVINODenoiser) -> None:
    denoiser = make_sd1(tmp_path).denoiser
    denoiser.unet.conv_out.bias[0] += 1
    changed = choose_engine("openvino", denoiser, NO_WORK)
    assert changed is not None
    expected = output(denoiser, 2, 8, 8, 16)
    assert (output(changed, 2, 8, 8, 16) - expected).abs().max() < 1e-4
    assert (output(engine, 2, 8, 8, 16) - expected).abs().max() > 0.9


def test_auto_uses_openvino_if_converted_or_worthwhile(
    pipeline: Pipeline, engine: OpenVINODenoiser, tmp_path: Path
) -> None:
    assert choose_engine("auto", pipeline.denoiser, NO_WORK) is not None
    other = make_sd2(tmp_path).denoiser
    assert choose_engine("auto", other, NO_WORK) is None
    assert not converted_folder(other).exists()
    assert choose_engine("torch", pipeline.denoiser, NO_WORK) is None
    assert choose_engine("auto", make_sd1(tmp_path).denoiser.half(), NO_WORK) is None


def test_refusals(
    pipeline: Pipeline, engine: OpenVINODenoiser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="unknown engine 'openvin': did you mean 'openvino'"):
        choose_engine("openvin", pipeline.denoiser, NO_WORK)
    with pytest.raises(UserError, match=r"computes in float32, not in torch\.float16: leave dtype out"):
        choose_engine("openvino", make_sd1(tmp_path).denoiser.half(), NO_WORK)
    with pytest.raises(UserError, match="computes on the CPU, but the model is on meta"):
        choose_engine("openvino", make_sd1(tmp_path).denoiser.to("meta"), NO_WORK)
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(UserError, match=r"OpenVINO cannot be used .*: pip install openvino"):
        choose_engine("openvino", pipeline.denoiser, NO_WORK)
    assert choose_engine("auto", pipeline.denoiser, NO_WORK) is None


def test_a_damaged_conversion(pipeline: Pipeline, engine: OpenVINODenoiser, tmp_path: Path) -> None:
    denoiser = make_sd2(tmp_path).denoiser
    folder = converted_folder(denoiser)
    folder.mkdir()
    shutil.copy(converted_folder(pipeline.denoiser) / MODEL_FILE, folder)  # without its weights
    with pytest.raises(UserError, match="cannot be read: remove the folder"):
        choose_engine("openvino", denoiser, NO_WORK)
    with pytest.warns(LdmWarning, match="cannot be read, so torch is used"):
        assert choose_engine("auto", denoiser, NO_WORK) is None
    shutil.rmtree(folder)


@pytest.mark.slow
def test_an_output_that_differs_from_torch_is_rejected_and_not_cached(
    pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "TOLERANCE", 0.0)
    with pytest.raises(UserError, match=r"differs from torch's by .* on this machine: use the engine torch"):
        openvino_denoiser(pipeline.denoiser, tmp_path / "converted")
    assert not list(tmp_path.iterdir())


def test_no_telemetry_is_sent() -> None:
    import_openvino()
    from openvino.tools.ovc import telemetry_utils

    assert telemetry_utils.tm.__name__ == "openvino.tools.ovc.telemetry_stub"


def test_the_command_line_and_reproducing_an_image(
    pipeline: Pipeline, engine: OpenVINODenoiser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    pipeline.save("model")
    for output, arguments in {
        "first": ["a red apple", "--engine", "openvino"],
        "again": ["--reproduce", "first/0001-a-red-apple-s0.png"],
    }.items():
        arguments = ["generate", *arguments, "--model", "model", "--output", output]
        assert CliRunner().invoke(app, arguments).exit_code == 0
    pngs = [next((tmp_path / output).glob("*.png")) for output in ("first", "again")]
    assert pngs[0].read_bytes() == pngs[1].read_bytes()
    assert read_settings(pngs[0])["engine"] == "openvino"
    refused = CliRunner().invoke(app, ["generate", "a", "--engine", "onnx"])
    assert refused.exit_code == 2


@pytest.mark.parametrize("every", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_model_with_two_text_encoders_and_sizes(tmp_path: Path, every: int) -> None:
    """SDXL: images are those of torch, whatever sizes are told, and `auto` measures it."""
    pipeline = Pipeline(make_sdxl(tmp_path), model_id="tiny")
    asked: dict[str, Any] = {
        "num_inference_steps": 4,
        "guidance_scale": 5.0,
        "original_size": (40, 24),
        "deep_features_every": every,
    }
    expected = pipeline.generate(PROMPTS, **asked)
    work = replace(NO_WORK, reuses_features=every > 1)
    assert choose_engine("auto", pipeline.denoiser, work) is None
    pipeline.engine = choose_engine("openvino", pipeline.denoiser, work)
    made = pipeline.generate(PROMPTS, **asked)
    deviation = expected.latents.std()
    assert 0 < (made.latents - expected.latents).abs().max() < 1e-3 * deviation
    other = pipeline.generate(PROMPTS, **asked | {"original_size": (8, 8)})
    assert (made.latents - other.latents).abs().max() > 1e-3 * deviation


def test_a_model_with_more_inputs_runs_in_torch(tmp_path: Path) -> None:
    denoiser = make_task_model(tmp_path, "inpaint").denoiser
    assert choose_engine("auto", denoiser, NO_WORK) is None
    with pytest.raises(UserError, match="only supports text-to-image models"):
        choose_engine("openvino", denoiser, NO_WORK)

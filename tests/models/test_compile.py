"""`torch.compile` of the UNet: same outputs and weight names, bit-identical resumed runs, and no silent fallback.

The tests use backends that need no C++ compiler instead of the real one; they receive the same graphs.
"""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from PIL import Image
from torch import Tensor
from typer.testing import CliRunner, Result

from ldm.cli.app import app
from ldm.errors import UserError
from ldm.io.files import read_tensors
from ldm.models.engines.compiled import compile_denoiser, compile_unet, is_compiled, uncompiled
from ldm.models.unet import UNetDenoiser
from ldm.pipeline.record import read_settings
from ldm.types import Conditioning
from tests.support.tiny_runs import DENOISER, train_parts, write_config
from train import denoiser
from train.loop.steps import padded
from train.loop.validation import evaluating


class Graphs:
    """A backend that runs graphs unchanged and records the latent sizes each was compiled for."""

    def __init__(self) -> None:
        self.sizes: list[tuple[int, ...]] = []
        self.num_calls = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Tensor]) -> object:
        self.sizes += [
            tuple(value.shape) for value in inputs if value.ndim == 4 and value.shape[1:] == (4, 8, 8)
        ]

        def run(*values: Tensor) -> object:
            self.num_calls += 1
            return graph(*values)

        return run


@pytest.fixture
def unet_denoiser() -> UNetDenoiser:
    torch._dynamo.reset()
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8, block_out_channels=(8,), layers_per_block=1, norm_num_groups=4, mid_block_type=None,
        down_block_types=("CrossAttnDownBlock2D",), up_block_types=("CrossAttnUpBlock2D",),
        cross_attention_dim=32, attention_head_dim=4,
    )  # fmt: skip
    return UNetDenoiser(unet.eval())


def call(denoiser: UNetDenoiser, num_rows: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    latents, text = (torch.randn(num_rows, *shape, generator=generator) for shape in ((4, 8, 8), (16, 32)))
    output: Tensor = denoiser(latents, torch.tensor([500] * num_rows), Conditioning(text))
    return output


def test_a_compiled_unet_has_one_graph_per_size_and_the_same_weights(
    unet_denoiser: UNetDenoiser, monkeypatch: pytest.MonkeyPatch
) -> None:
    names, expected, graphs = list(unet_denoiser.state_dict()), call(unet_denoiser), Graphs()
    monkeypatch.setattr("ldm.models.engines.compiled.BACKEND", graphs)
    compile_unet(unet_denoiser.unet)
    assert is_compiled(unet_denoiser) and list(unet_denoiser.state_dict()) == names
    assert torch.equal(call(unet_denoiser), expected)
    call(unet_denoiser)
    assert graphs.num_calls == 2 and graphs.sizes == [(2, 4, 8, 8)]
    with uncompiled(unet_denoiser):
        assert torch.equal(call(unet_denoiser), expected)
    with evaluating(unet_denoiser):
        call(unet_denoiser, 1)
    assert graphs.num_calls == 2  # compiling is not worthwhile for a few calls, such as those of a preview


@pytest.mark.slow
def test_every_size_is_compiled_separately(
    unet_denoiser: UNetDenoiser, monkeypatch: pytest.MonkeyPatch
) -> None:
    graphs = Graphs()
    monkeypatch.setattr("ldm.models.engines.compiled.BACKEND", graphs)
    compile_unet(unet_denoiser.unet)
    for num_rows in (2, 3):
        call(unet_denoiser, num_rows)
    assert graphs.sizes == [(2, 4, 8, 8), (3, 4, 8, 8)]


@pytest.mark.slow
def test_generation_fuses_attention_and_keeps_the_output(
    unet_denoiser: UNetDenoiser, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, graphs = call(unet_denoiser), Graphs()
    monkeypatch.setattr("ldm.models.engines.compiled.BACKEND", graphs)
    compile_denoiser(unet_denoiser, num_rows=2, height=8, width=8, num_tokens=16)
    assert graphs.num_calls == 1
    kinds = {type(processor).__name__ for processor in unet_denoiser.unet.attn_processors.values()}
    assert kinds == {"FusedAttnProcessor2_0"}
    torch.testing.assert_close(call(unet_denoiser), expected, atol=1e-5, rtol=1e-4)


def test_a_compilation_failure_is_an_error_with_the_reason(
    unet_denoiser: UNetDenoiser, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> object:
        raise RuntimeError("no compiler\nat all")

    monkeypatch.setattr("ldm.models.engines.compiled.BACKEND", fails)
    with pytest.raises(UserError, match="cannot be compiled here") as caught:
        compile_denoiser(unet_denoiser, num_rows=1, height=8, width=8, num_tokens=16)
    assert "no compiler" in str(caught.value) and "\n" not in str(caught.value)


def test_a_batch_is_padded_with_samples_of_zero_weight() -> None:
    batch = {"sample_id": ["a", "b"], "x": torch.tensor([[1.0], [2.0]]), "weight": torch.tensor([1.0, 0.5])}
    full = padded(batch, 4)
    assert full["sample_id"] == ["a", "b", "b", "b"]
    assert full["x"].flatten().tolist() == [1, 2, 2, 2] and full["weight"].tolist() == [1, 0.5, 0, 0]
    assert batch["weight"].tolist() == [1, 0.5]


@pytest.mark.slow
def test_a_compiled_run_resumes_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seven samples in batches of four: every second batch has three and is padded. A plain run is about equal."""
    monkeypatch.setattr("ldm.models.engines.compiled.BACKEND", "aot_eager")
    parts = train_parts(tmp_path)
    common = {"parts": parts, "save_every": 3, "preview_every": 3, "trainable": "unet"}
    runs = {name: tmp_path / name for name in ("whole", "stopped", "plain")}
    for name, run_dir in runs.items():
        torch._dynamo.reset()
        path = tmp_path / f"{name}.yaml"
        config = write_config(path, DENOISER, tmp_path / "data", run_dir, compile=name != "plain", **common)
        assert denoiser.main([str(config)]) == 0
        if name == "stopped":
            for left in ("checkpoints/step-000006", "pipeline"):
                shutil.rmtree(run_dir / left)
            torch._dynamo.reset()
            assert denoiser.main([str(config)]) == 0
    ends = {name: _last(run_dir) for name, run_dir in runs.items()}
    assert all(torch.equal(ends["whole"][name], tensor) for name, tensor in ends["stopped"].items())
    for name, tensor in ends["plain"].items():
        torch.testing.assert_close(ends["whole"][name], tensor, atol=1e-3, rtol=1e-2)


def generate(folder: Path, *options: str) -> Result:
    line = ["generate", "a rocket", "--output", str(folder), "--num-inference-steps", "2", "--device", "cpu"]
    return CliRunner().invoke(app, [*line, *options])


@pytest.mark.slow
def test_generate_compiles_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch._dynamo.reset()
    graphs = Graphs()
    monkeypatch.setattr("ldm.models.engines.compiled.BACKEND", graphs)
    for name, more in (("plain", []), ("compiled", ["--compile"])):
        assert generate(tmp_path / name, *more).exit_code == 0
    assert graphs.num_calls == 3  # the trial call and two steps
    plain, compiled = (next((tmp_path / name).glob("*.png")) for name in ("plain", "compiled"))
    assert read_settings(compiled)["compiled"] is True and "compiled" not in read_settings(plain)
    levels = [np.asarray(Image.open(path)).astype(int) for path in (plain, compiled)]
    assert np.abs(levels[0] - levels[1]).max() <= 1


def test_settings_that_compile_does_not_support_are_rejected(tmp_path: Path) -> None:
    for other in (["--preset", "fast"], ["--low-memory"]):
        result = generate(tmp_path / "out", "--compile", *other)
        assert result.exit_code == 2 and "error: compile does not work with" in result.stderr
    assert not (tmp_path / "out").exists()


def _last(run_dir: Path) -> dict[str, Tensor]:
    return read_tensors(run_dir / "checkpoints/step-000006/weights.safetensors")

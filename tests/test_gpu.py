"""Tests that need a CUDA device: run `pytest -m gpu` on a machine with one. They are skipped elsewhere.

They compare results with the CPU's, and provoke real waits, out-of-memory errors and refusals.
"""

import math
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ldm import load_pipeline
from ldm.errors import UserError
from ldm.evaluation.curves import read_metrics
from ldm.io.files import read_tensors
from ldm.models.attention import xformers_fault
from ldm.models.engines.compiled import compile_denoiser
from ldm.types import Conditioning
from tests.support.tiny_models import make_sd1
from tests.support.tiny_runs import DENOISER, train_parts, write_config
from tests.support.tiny_training import PointLoss, make_settings
from train import denoiser
from train.loop.steps import Batch, train_steps
from train.run.run import Run

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
CUDA = torch.device("cuda")
ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """Seven squares, and an autoencoder and a text encoder trained on them on the CPU."""
    folder = tmp_path_factory.mktemp("gpu")
    return folder, train_parts(folder)


def trained(
    parts: tuple[Path, dict[str, str]], run_dir: Path, **changes: Any
) -> tuple[dict[str, Tensor], list[float]]:
    """The weights and the losses of a run of six steps, on CUDA unless `device` says otherwise."""
    tree = {"trainable": "unet", "device": "auto", **changes}
    config = write_config(
        run_dir.with_suffix(".yaml"), DENOISER, parts[0] / "data", run_dir, parts=parts[1], **tree
    )
    assert denoiser.main([str(config)]) == 0
    weights = read_tensors(run_dir / "checkpoints/step-000006/weights.safetensors")
    return weights, [row["loss"] for row in read_metrics(run_dir)]


@pytest.mark.parametrize(("mixed_precision", "tolerance"), [("no", 1e-3), ("bf16", 0.05), ("fp16", 0.05)])
def test_training_matches_the_cpus_losses_with_float32_weights(
    parts: tuple[Path, dict[str, str]], tmp_path: Path, mixed_precision: str, tolerance: float
) -> None:
    _, expected = trained(parts, tmp_path / "cpu", device="cpu")
    weights, losses = trained(parts, tmp_path / "cuda", mixed_precision=mixed_precision)
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    assert losses == pytest.approx(expected, rel=tolerance)


def test_trained_with_the_cache_and_without_it_the_losses_are_the_same(
    parts: tuple[Path, dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LDM_CACHE_DIR", str(tmp_path / "cache"))
    _, cached = trained(parts, tmp_path / "cached")
    _, encoded = trained(parts, tmp_path / "encoded", cache={"enabled": False})
    assert cached == pytest.approx(encoded, rel=1e-3)


@pytest.mark.parametrize("compiled", [False, True])
def test_a_run_on_the_gpu_resumes(parts: tuple[Path, dict[str, str]], tmp_path: Path, compiled: bool) -> None:
    """Equal up to rounding: some CUDA kernels sum in no fixed order."""
    changes = {"save_every": 3, "mixed_precision": "bf16", "compile": compiled}
    expected, _ = trained(parts, tmp_path / "run", **changes)
    shutil.rmtree(tmp_path / "run/checkpoints/step-000006")
    torch._dynamo.reset()
    again, _ = trained(parts, tmp_path / "run", **changes)
    for name, tensor in expected.items():
        torch.testing.assert_close(again[name], tensor, atol=1e-3, rtol=1e-2)


def test_a_compiled_run_is_about_the_same(parts: tuple[Path, dict[str, str]], tmp_path: Path) -> None:
    _, expected = trained(parts, tmp_path / "plain")
    _, losses = trained(parts, tmp_path / "compiled", compile=True)
    assert losses == pytest.approx(expected, rel=1e-2)


def test_the_eight_bit_optimizer_learns(parts: tuple[Path, dict[str, str]], tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    _, losses = trained(parts, tmp_path / "run", optim={"optimizer": "adamw_8bit", "num_warmup_steps": 2})
    assert all(math.isfinite(loss) for loss in losses)


@pytest.mark.parametrize(
    "small",
    [
        {"moments": "8bit"},
        {"weights": "bfloat16", "moments": "8bit"},
        {"weights": "bfloat16", "fused_backward": True, "max_grad_norm": None},
    ],
)
def test_the_small_formats_learn(
    parts: tuple[Path, dict[str, str]], tmp_path: Path, small: dict[str, Any]
) -> None:
    _, expected = trained(parts, tmp_path / "usual", optim={"num_warmup_steps": 2})
    _, losses = trained(parts, tmp_path / "run", optim={**small, "num_warmup_steps": 2})
    assert losses == pytest.approx(expected, rel=0.02)


# Waiting


def test_no_step_waits_for_the_gpu(tmp_path: Path) -> None:
    """CUDA itself raises an error wherever the host would wait for it."""
    accelerator, module, state, settings = begun(tmp_path)
    batches = [points(4)] * 4
    records = train_steps(state, module, iter(batches), accelerator, settings)
    next(records)  # sets up what stays on the device
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        assert len(list(records)) == 3
    finally:
        torch.cuda.set_sync_debug_mode("default")


def begun(tmp_path: Path, module: nn.Module | None = None) -> tuple[Accelerator, nn.Module, Any, Any]:
    """A run of points set up on the GPU."""
    settings = make_settings(tmp_path / "run", device="auto", num_steps=4)
    run = Run(settings, planning=True)
    assert run.device.type == "cuda"
    state = run.start(module or PointLoss(dropout=0))
    return run.accelerator, run.prepare(state.module), state, settings


def points(count: int) -> Batch:
    return {
        "sample_id": [str(number) for number in range(count)],
        "x": torch.randn(count, 4, generator=torch.Generator().manual_seed(0)).pin_memory(),
        "weight": torch.ones(count).pin_memory(),
    }


# Memory


class Hungry(PointLoss):
    """Asks for more than the GPU has for more than one sample."""

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        if len(batch["weight"]) > 1:
            total = torch.cuda.get_device_properties(0).total_memory
            torch.empty(2 * total, dtype=torch.uint8, device=CUDA)
        return super().forward(batch)


def test_a_real_lack_of_memory_halves_the_micro_batch(tmp_path: Path) -> None:
    accelerator, module, state, settings = begun(tmp_path, Hungry(dropout=0))
    record = next(train_steps(state, module, iter([points(4)]), accelerator, settings))
    assert record.micro_batch == 1
    _, plain, plain_state, _ = begun(tmp_path)
    expected = next(train_steps(plain_state, plain, iter([points(4)]), accelerator, settings))
    assert float(record.metrics["loss"]) == pytest.approx(float(expected.metrics["loss"]), rel=1e-4)


# Generation


@pytest.mark.parametrize(("dtype", "levels"), [("float32", 2), ("bfloat16", 40), ("float16", 12)])
def test_images_match_the_cpus(dtype: str, levels: int) -> None:
    """The mean difference in levels of 255; the initial noise is bit-identical."""
    on_cpu, on_gpu = (
        load_pipeline(device=device, dtype=kind) for device, kind in (("cpu", None), ("cuda", dtype))
    )
    images = [
        np.asarray(one.generate("a red apple", seed=7, num_inference_steps=8).images[0], dtype=np.float64)
        for one in (on_cpu, on_gpu)
    ]
    assert np.abs(images[0] - images[1]).mean() <= levels / 4


def test_a_compiled_denoiser_gives_the_same_output(tmp_path: Path) -> None:
    """Also at a second size; its previous output is not overwritten."""
    unet_denoiser = make_sd1(tmp_path).denoiser.to(CUDA)
    inputs = {rows: _inputs(rows) for rows in (2, 4)}
    with torch.no_grad():
        expected = {rows: unet_denoiser(*values) for rows, values in inputs.items()}
        compile_denoiser(unet_denoiser, num_rows=2, height=8, width=8, num_tokens=16)
        for _ in range(4):  # the third call is the first that replays a recorded graph
            answers = {rows: unet_denoiser(*values) for rows, values in inputs.items()}
            other = unet_denoiser(inputs[2][0] + 1, *inputs[2][1:])
    for rows, output in answers.items():
        torch.testing.assert_close(output, expected[rows], atol=1e-2, rtol=1e-2)
    assert not torch.allclose(other, answers[2], atol=1e-3)


def _inputs(num_rows: int) -> tuple[Tensor, Tensor, Conditioning]:
    generator = torch.Generator().manual_seed(num_rows)
    latents, text = (torch.randn(num_rows, *shape, generator=generator) for shape in ((4, 8, 8), (16, 32)))
    return latents.to(CUDA), torch.full((num_rows,), 500, device=CUDA), Conditioning(text.to(CUDA))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_xformers_runs_right_or_says_why_not(dtype: torch.dtype) -> None:
    fault = xformers_fault(CUDA, dtype)
    assert fault is None or len(fault.splitlines()) == 1


def test_more_processes_than_gpus_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(torch.cuda.device_count() + 1))
    with pytest.raises(UserError, match="CUDA devices"):
        Run(make_settings(tmp_path / "run", device="auto"), planning=True)


# Several GPUs


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@pytest.mark.parametrize("sharding", ["none", "full"])
def test_two_gpus_train_the_same_model_as_one(
    parts: tuple[Path, dict[str, str]], tmp_path: Path, sharding: str
) -> None:
    _, expected = trained(parts, tmp_path / "one")
    config = write_config(
        tmp_path / "two.yaml", DENOISER, parts[0] / "data", tmp_path / "two",
        parts=parts[1], trainable="unet", device="auto", sharding=sharding,
    )  # fmt: skip
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    run = subprocess.run([*launcher, "-m", "train.denoiser", str(config)], cwd=ROOT, timeout=280)
    assert run.returncode == 0
    assert [row["loss"] for row in read_metrics(tmp_path / "two")] == pytest.approx(expected, rel=1e-3)

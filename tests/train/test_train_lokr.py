"""Training a LoKr on a tiny model of both families: resumed, averaged, generated with, and left as a file."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from ldm.io.files import read_tensors
from ldm.models.adapters.folder import LORA_FILE
from ldm.models.adapters.lora_files import read_lora, write_lora_kohya
from ldm.models.loading.model import load_parts, save_parts
from ldm.pipeline.pipeline import load_pipeline
from tests.support.slow_cases import rest_slow
from tests.support.tiny_models import make_sd1, make_sdxl
from tests.support.tiny_runs import COMMON, write_squares
from train import denoiser

FAMILIES = {"sd1": make_sd1, "sdxl": make_sdxl}
LOKR = {
    "kind": "lokr", "rank": 2, "factor": 4, "alpha": 3, "dropout": 0.1, "text_encoder": True,
    "target_modules": "all",
}  # fmt: skip


def train(folder: Path, name: str, num_steps: int) -> Path:
    tree: dict[str, Any] = {
        **COMMON,
        "program": "denoiser",
        "base": str(folder / "base"),
        "run_dir": str(folder / name),
        "data": {"path": str(folder / "data"), "height": 16, "width": 16},
        "cache": {"folder": str(folder / "cache")},
        "preview": {"prompts": ["red"], "num_inference_steps": 1},
        "trainable": "lora",
        "lora": LOKR,
        "num_steps": num_steps,
        "optim": {**COMMON["optim"], "lr_schedule": "constant", "num_warmup_steps": 0},
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(tree))
    assert denoiser.main([str(path)]) == 0
    return folder / name


@pytest.fixture(scope="module", params=rest_slow(FAMILIES, "sdxl"))
def folder(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """Runs of four steps: `one`, and `two`, which was resumed after two."""
    folder = tmp_path_factory.mktemp(request.param)
    save_parts(FAMILIES[request.param](folder / "tokenizers"), folder / "base")
    write_squares(folder / "data")
    train(folder, "one", 4)
    train(folder, "two", 2)
    train(folder, "two", 4)
    return folder


def stored(run_dir: Path, name: str) -> dict[str, Tensor]:
    return read_tensors(run_dir / f"checkpoints/step-000004/{name}.safetensors")


@pytest.mark.parametrize("name", ["weights", "average", "optimizer"])
def test_a_resumed_run_ends_with_the_same_bits(folder: Path, name: str) -> None:
    one, two = stored(folder / "one", name), stored(folder / "two", name)
    assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


def test_every_factor_was_trained_and_its_average_is_what_is_stored(folder: Path) -> None:
    live, average = stored(folder / "one", "weights"), stored(folder / "one", "average")
    weights = read_lora(folder / "one/pipeline" / LORA_FILE)
    assert all(tensor.any() and not torch.equal(average[name], tensor) for name, tensor in live.items())
    found = {tensor.double().sum().item() for tensor in weights.tensors.values()}
    # those of layers that SDXL does not read are stored, and not trained
    assert {tensor.double().sum().item() for tensor in average.values()} <= found
    assert {config["decompose_factor"] for config in weights.configs.values()} == {4}


def test_the_run_and_its_file_on_the_base_draw_the_same_image(folder: Path, tmp_path: Path) -> None:
    names = load_parts(folder / "base").family.lora
    write_lora_kohya(read_lora(folder / "one/pipeline" / LORA_FILE), tmp_path / "x.safetensors", lora=names)
    given: list[dict[str, Any]] = [
        {"model": folder / "one"},
        {"model": folder / "base", "loras": [(tmp_path / "x.safetensors", 1.0)]},
        {"model": folder / "base", "loras": [(folder / "one", 1.0)]},
        {"model": folder / "base"},
    ]
    run, file, added, base = (
        load_pipeline(each.pop("model"), device="cpu", **each)
        .generate("red", seed=1, num_inference_steps=2)
        .latents
        for each in given
    )
    torch.testing.assert_close(file, run, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(added, run, rtol=1e-4, atol=1e-3)
    assert run is not None and base is not None and (run - base).abs().max() > 0.1

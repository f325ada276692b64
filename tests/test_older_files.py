"""Runs, caches, images and LoRA files that version 0.1 wrote before the code was moved still work.

That version wrote `tests/fixtures/version_1`: tiny models of coloured squares. The denoiser's run is at step 3 of 6,
and its `pipeline/` is the result after step 6.
"""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from ldm import load_pipeline
from ldm.cli.app import app
from train import denoiser

OLD = Path(__file__).parent / "fixtures" / "version_1"
LORAS = ["lora-diffusers", "lora-peft", "lora-kohya/lora-kohya.safetensors"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy to work in; paths in the configurations are relative to it."""
    folder = tmp_path / "old"
    shutil.copytree(OLD, folder)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("LDM_CACHE_DIR", str(folder / "cache"))
    return folder


def files_of(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_size for path in folder.rglob("*.safetensors")}


def test_an_old_run_is_resumed_with_the_old_cache(folder: Path) -> None:
    cached = files_of(folder / "cache")
    assert denoiser.main(["denoiser.yaml"]) == 0
    rows = (folder / "denoiser" / "metrics.jsonl").read_text().splitlines()
    assert len(rows) == 6
    assert files_of(folder / "cache") == cached  # nothing was encoded again
    for part in ("unet", "text_encoder", "vae"):
        (old,) = (OLD / "denoiser" / "pipeline" / part).glob("*.safetensors")
        new = load_file(folder / "denoiser" / "pipeline" / part / old.name)
        for name, tensor in load_file(old).items():
            torch.testing.assert_close(new[name], tensor, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("lora", LORAS)
def test_an_old_lora_has_the_same_effect_as_the_old_adapter(folder: Path, lora: str) -> None:
    run = load_pipeline("lora").generate("red", num_inference_steps=2)
    base = load_pipeline("denoiser").generate("red", num_inference_steps=2)
    file = load_pipeline("denoiser", loras=[(folder / "exports" / lora, 1.0)])
    made = file.generate("red", num_inference_steps=2)
    torch.testing.assert_close(made.latents, run.latents, rtol=1e-3, atol=1e-3)
    assert (made.latents - base.latents).abs().max() > 1e-3


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"), dtype=float)


def test_an_old_image_is_reproduced(folder: Path) -> None:
    old, lora = "pictures/0001-red-s3.png", f"exports/{LORAS[2]}"
    asked = ["generate", "--from-image", old, "--model", "denoiser", "--lora", lora, "--output", "again"]
    assert app(asked, standalone_mode=False) == 0
    (made,) = Path("again").iterdir()
    assert made.name == os.path.basename(old)
    assert np.abs(pixels(made) - pixels(OLD / old)).max() <= 1


def test_an_image_of_an_older_embedded_model_is_refused(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The package has one `emoji`, which was trained further since; its weights are not those of the image."""
    old = "pictures-emoji/0001-a-red-apple-s7.png"
    assert app(["generate", "--from-image", old, "--output", "again"], standalone_mode=False) == 2
    assert "weights" in capsys.readouterr().err and not Path("again").exists()

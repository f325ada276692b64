"""The Stable Diffusion recipes from data to image: cache, train, kill, resume, generate, with narrow networks."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from PIL import Image
from safetensors.torch import load_file

from ldm.models.loading.model import ModelParts, save_parts
from ldm.models.unet import UNetDenoiser
from ldm.models.vae import KLAutoencoder
from tests.support.tiny_models import make_sd1, make_sd2, make_sdxl

ROOT = Path(__file__).parents[2]
SMALL = [
    "data.height=192", "data.width=192", "num_steps=20", "global_batch_size=4", "max_micro_batch=2", "save_every=5",
    "preview_every=20", "log_every=1", "device=cpu", "optim.num_warmup_steps=2", "data.num_workers=0",
    "data.holdout_fraction=0.25", "preview.num_inference_steps=2", "preview.prompts=[a red apple]",
]  # fmt: skip
RECIPES = {
    "sd15-lora": ("sd1", []),
    "sd15-full": ("sd1", []),
    "sd21-v": ("sd2", []),
    "sdxl-lora": ("sdxl", []),
    "sdxl-full": ("sdxl", []),
    "sdxl-inpaint": ("sdxl", []),
    "scratch-256": (
        "sd1",
        ["model.block_out_channels=[16,32]", "model.attention=[true,true]", "model.norm_num_groups=8",
         "model.attention_head_dim=8"],
    ),
}  # fmt: skip


def widen(parts: ModelParts, *, text_width: int, heads: int | tuple[int, ...], linear: bool) -> ModelParts:
    """A tiny model with the structure of Stable Diffusion: four levels of two resnets, 8 pixels per latent."""
    torch.manual_seed(1)
    unet = UNet2DConditionModel(
        sample_size=8, block_out_channels=(16, 32, 32, 32), norm_num_groups=8, cross_attention_dim=text_width,
        attention_head_dim=heads, use_linear_projection=linear,
    )  # fmt: skip
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 16, 16, 16), norm_num_groups=4, layers_per_block=2, latent_channels=4, sample_size=64,
    )  # fmt: skip
    parts.denoiser, parts.autoencoder = UNetDenoiser(unet), KLAutoencoder(vae)
    return parts


def eight_pixels_per_latent(parts: ModelParts) -> ModelParts:
    """A tiny SDXL with the autoencoder's structure of a large one."""
    torch.manual_seed(1)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 16, 16, 16), norm_num_groups=4, latent_channels=4, sample_size=64,
    )  # fmt: skip
    parts.autoencoder = KLAutoencoder(vae)
    return parts


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three models, `sd1`, `sd2` and `sdxl`, and twelve captioned photos of three shapes."""
    folder = tmp_path_factory.mktemp("recipes")
    save_parts(widen(make_sd1(folder / "a"), text_width=32, heads=2, linear=False), folder / "sd1")
    save_parts(widen(make_sd2(folder / "b"), text_width=48, heads=(2, 4, 4, 4), linear=True), folder / "sd2")
    save_parts(eight_pixels_per_latent(make_sdxl(folder / "c")), folder / "sdxl")
    (folder / "photos").mkdir()
    Image.linear_gradient("L").point(lambda level: 255 * (level > 128)).resize((200, 200)).save(
        folder / "mask.png"
    )
    for number in range(12):
        size = [(200, 200), (270, 140), (140, 290)][number % 3]
        Image.new("RGB", size, (20 * number, 100, 200)).save(folder / f"photos/{number}.png")
        (folder / f"photos/{number}.txt").write_text(f"a red apple number {number}")
    return folder


def command(folder: Path, recipe: str, run_dir: Path) -> list[str]:
    model, changes = RECIPES[recipe]
    base = str(folder / model)
    scratch = [f"parts.autoencoder={base}", f"parts.text_encoder={base}"]
    given = scratch if recipe == "scratch-256" else [f"base={base}"]
    settings = [*SMALL, *changes, *given, f"data.path={folder / 'photos'}", f"run_dir={run_dir}"]
    return [sys.executable, "-m", "ldm", "train", f"configs/{recipe}.yaml", *settings]


def run(arguments: list[str]) -> str:
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stderr


def kill_at_step(arguments: list[str], run_dir: Path, step: int) -> None:
    """Start the run, and kill it and its children after this many steps."""
    process = subprocess.Popen(arguments, cwd=ROOT, stderr=subprocess.DEVNULL, start_new_session=True)
    metrics = run_dir / "metrics.jsonl"
    deadline = time.monotonic() + 200
    while process.poll() is None and time.monotonic() < deadline:
        if metrics.is_file() and len(metrics.read_text().splitlines()) >= step:
            break
        time.sleep(0.05)
    children = subprocess.run(
        ["pgrep", "-P", str(process.pid)], capture_output=True, text=True
    ).stdout.split()
    for pid in [*map(int, children), process.pid]:
        os.kill(pid, signal.SIGKILL)
    process.wait()


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_trains_is_killed_goes_on_and_draws(
    folder: Path, recipe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LDM_CACHE_DIR", str(folder / "cache"))
    whole, killed = folder / f"{recipe}-whole", folder / f"{recipe}-killed"
    run(command(folder, recipe, whole))
    kill_at_step(command(folder, recipe, killed), killed, 8)
    assert not (killed / "pipeline").exists()
    assert "resuming at step 5" in run(command(folder, recipe, killed))
    first, second = (
        load_file(run_dir / "checkpoints/step-000020/weights.safetensors") for run_dir in (whole, killed)
    )
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    rows = [json.loads(line) for line in (killed / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == list(range(1, 21))
    report = json.loads((killed / "data_report.json").read_text())
    assert report["num_used"] == 12 and len(report["buckets"]) > 1
    picture = folder / f"{recipe}-pictures"
    sizes = ["--height", "64", "--width", "64", "--num-inference-steps", "2", "--output", str(picture)]
    given = ["--image", folder / "photos/0.png", "--mask", folder / "mask.png"] if "inpaint" in recipe else []
    run(
        [
            sys.executable,
            "-m",
            "ldm",
            "generate",
            "a red apple",
            "--model",
            str(killed),
            *sizes,
            *map(str, given),
        ]
    )
    assert len(list(picture.glob("*.png"))) == 1

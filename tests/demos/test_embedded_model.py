"""The embedded model: a stock diffusers folder that gives the same images, small enough for the package."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

from ldm import load_pipeline
from ldm.diffusion.schedulers import make_scheduler

FOLDER = Path(__file__).parents[2] / "ldm" / "assets" / "emoji"


def test_stock_diffusers_generates_the_same_images() -> None:
    prompts, seeds = ["red apple", "a rocket"], [3, 3]
    ours = load_pipeline("emoji", device="cpu").generate(prompts, seed=3, num_inference_steps=8)
    pipe = StableDiffusionPipeline.from_pretrained(FOLDER, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    config = json.loads((FOLDER / "scheduler/scheduler_config.json").read_text())
    pipe.scheduler = make_scheduler("dpmpp_2m", config)
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
    theirs = pipe(prompts, num_inference_steps=8, guidance_scale=2.0, generator=generators).images
    for image, other in zip(ours.images, theirs, strict=True):
        assert np.abs(np.asarray(image, int) - np.asarray(other, int)).max() <= 1


def test_a_red_apple_is_red_and_leaves_the_corners_white() -> None:
    image = load_pipeline("emoji", device="cpu").generate("a red apple", seed=7).images[0]
    pixels = np.asarray(image, dtype=int)
    red, green, blue = pixels[24:48, 16:48].mean(axis=(0, 1))
    assert red > 170 and green < 110 and blue < 110
    assert pixels[:3, :3].mean() > 235 and pixels[-3:, -3:].mean() > 235


def test_the_second_model_makes_a_red_apple_blue_and_keeps_its_leaf() -> None:
    drawn = load_pipeline("emoji", device="cpu").generate("a red apple", seed=7).images[0]
    editing = load_pipeline("emoji-edit", device="cpu")
    edited = editing.generate("make the apple blue", image=drawn, seed=7).images[0]
    before, after = (np.asarray(image, dtype=int) for image in (drawn, edited))
    red, green, blue = after[24:48, 16:48].mean(axis=(0, 1))
    assert blue > 150 and red < 100 and green < 150
    leaf = before[..., 1] - np.maximum(before[..., 0], before[..., 2]) > 60
    assert leaf.sum() > 20
    assert (after[leaf][:, 1] > after[leaf][:, 2]).mean() > 0.8


def test_new_combinations_are_drawn() -> None:
    model = load_pipeline("emoji", device="cpu")
    pixels = np.asarray(model.generate("a blue apple", seed=7).images[0], dtype=int)
    red, green, blue = pixels[24:48, 16:48].mean(axis=(0, 1))
    assert blue > 150 and red < 100 and green < 160


def test_both_fit_into_the_package() -> None:
    files = [path for path in FOLDER.parent.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 95e6


def test_it_is_small_and_has_a_card() -> None:
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 60e6
    assert max(path.stat().st_size for path in files) < 15e6
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\n") and "\nlicense: mit\n" in card.partition("\n---\n")[0]
    assert "Microsoft" in card and "top 5" in card
    with torch.no_grad():
        assert json.loads((FOLDER / "ldm.json").read_text())["defaults"]["height"] == 64


@pytest.mark.parametrize("name", ["unet", "vae", "text_encoder"])
def test_its_weights_are_fp16_safetensors(name: str) -> None:
    from safetensors import safe_open

    for path in (FOLDER / name).glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            assert {file.get_slice(key).get_dtype() for key in file.keys()} == {"F16"}  # noqa: SIM118

"""A small fresh model of Stable Diffusion XL's kind: loads as one, and its UNet reads what it is told of sizes."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ldm.demos.shapes_crops import SIZE_PX, all_scenes
from ldm.demos.shapes_crops_score import REQUESTS, score_crops
from ldm.diffusion.path import DDPMPath, ScheduleSettings
from ldm.models.fresh_xl import make_small_xl
from ldm.models.loading.components import load_vae
from ldm.models.loading.model import ModelParts, load_parts, save_parts
from ldm.models.loading.source import EMBEDDED
from ldm.pipeline.pipeline import load_pipeline

SCHEDULER = DDPMPath(ScheduleSettings(prediction_type="v_prediction")).scheduler_config()


def make(seed: int = 0) -> ModelParts:
    vae = load_vae(EMBEDDED["emoji"] / "vae", torch.float32)
    return make_small_xl(
        vae, [scene.caption for scene in all_scenes()], SCHEDULER, size_px=SIZE_PX, seed=seed
    )


def predicted(
    parts: ModelParts, *, crop: tuple[int, int] = (0, 0), prompt: str = "a large red star"
) -> Tensor:
    size = (SIZE_PX, SIZE_PX)
    latents = torch.ones(1, 4, SIZE_PX // 4, SIZE_PX // 4)
    with torch.no_grad():
        return parts.denoiser(latents, torch.tensor([500]), parts.encode([prompt], size=size, crop=crop))


def test_it_is_saved_and_loaded_as_a_model_of_sdxl(tmp_path: Path) -> None:
    parts = make()
    save_parts(parts, tmp_path / "model")
    again = load_parts(tmp_path / "model")
    assert parts.family.name == again.family.name == "sdxl"
    for name, network in parts.networks().items():
        weights = again.networks()[name].state_dict()
        assert all(torch.equal(weights[key], each) for key, each in network.state_dict().items())
    torch.testing.assert_close(predicted(parts), predicted(again), rtol=1e-3, atol=1e-5)
    assert (again.defaults.height, again.defaults.width) == (SIZE_PX, SIZE_PX)
    tokens = again.text_encoder.tokenizer([scene.caption for scene in all_scenes()])["input_ids"]
    assert max(map(len, tokens)) == 6  # a token for each word of the captions


def test_it_reads_the_prompt_and_the_crop() -> None:
    parts = make()
    usual = predicted(parts)
    assert not torch.allclose(usual, predicted(parts, crop=(0, 16)), atol=1e-4)
    assert not torch.allclose(usual, predicted(parts, prompt="a large blue star"), atol=1e-4)


def test_its_weights_are_those_of_the_seed() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one = make(1)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    assert torch.equal(predicted(one), predicted(make(1)))
    assert not torch.equal(predicted(one), predicted(make(2)))


@pytest.mark.slow
def test_a_model_that_has_learned_nothing_is_scored(tmp_path: Path) -> None:
    """The report, and a grid of each request; an untrained model makes no whole shapes of the right kind."""
    save_parts(make(), tmp_path / "model")
    pipeline = load_pipeline(tmp_path / "model")
    few = {"num_inference_steps": 1}
    report = score_crops(pipeline, pipeline, tmp_path / "score", num_seeds=1, settings=few)
    assert json.loads((tmp_path / "score/report.json").read_text()) == report
    assert report["told"].keys() == REQUESTS.keys() and report["untold"].keys() == {"square"}
    assert report["told"]["square"] == report["untold"]["square"]  # the same noise
    assert report["told"]["square"]["right"]["num_right"] <= 5
    assert report["sizes"]["softer"]["num_judged"] == 40
    assert len(list((tmp_path / "score").glob("*.png"))) == len(REQUESTS) + 3

"""Which seed an image has: counted up from one, or its own; and none if its noise was given."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ldm.errors import UserError
from ldm.generation.reproduce import read_original
from ldm.noise import image_generators, normal_per_image
from ldm.pipeline.pipeline import Generation, Pipeline
from ldm.pipeline.record import infotext, read_settings, write_png
from ldm.pipeline.settings import latents_hash
from tests.support.tiny_models import make_sd1

STEPS: dict[str, Any] = {"num_inference_steps": 2, "guidance_scale": 1.0}


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    return Pipeline(make_sd1(tmp_path_factory.mktemp("tokenizer")), model_id="tiny")


def seeds_of(made: Generation) -> list[int | None]:
    return [settings["seed"] for settings in made.settings]


@pytest.mark.parametrize("scheduler", ["ddim", "euler_a"])
def test_each_image_is_that_of_its_own_seed(pipeline: Pipeline, scheduler: str) -> None:
    asked: dict[str, Any] = {"scheduler": scheduler, **STEPS}
    seeds = [30, 2, 2, 2**63 - 1]
    made = pipeline.generate(["a", "b"], seeds=seeds, num_images=2, batch_size=3, **asked)
    assert seeds_of(made) == seeds
    for row, (prompt, seed) in enumerate(zip("aabb", seeds, strict=True)):
        alone = pipeline.generate(prompt, seed=seed, **asked)
        assert torch.allclose(made.latents[row], alone.latents[0], atol=1e-4)
        assert made.settings[row] == alone.settings[0]


def test_seeds_that_count_up_are_what_one_seed_gives(pipeline: Pipeline) -> None:
    one = pipeline.generate(["a", "b"], seed=7, num_images=2, **STEPS)
    own = pipeline.generate(["a", "b"], seeds=[7, 8, 7, 8], num_images=2, **STEPS)
    assert torch.equal(one.latents, own.latents) and one.settings == own.settings


def test_seeds_of_numpy_are_written_as_plain_numbers(pipeline: Pipeline) -> None:
    made = pipeline.generate("a", seeds=np.array([3]), **STEPS)  # type: ignore[arg-type]
    assert json.loads(json.dumps(made.settings[0]))["seed"] == 3


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"seeds": [1]}, "1 seeds for 2 images: give one seed for each image"),
        ({"seeds": []}, "0 seeds for 2 images"),
        ({"seeds": [1, 2, 3]}, "3 seeds for 2 images"),
        ({"seeds": [1, -1]}, "a seed is -1: it must be from 0 to 9223372036854775807"),
        ({"seeds": [2**63, 1]}, "a seed is 9223372036854775808"),
        ({"seeds": [1, 2], "seed": 3}, "seed is 3 and seeds are given too: give one of the two"),
    ],
)
def test_wrong_seeds_are_refused(pipeline: Pipeline, wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        pipeline.generate("a", num_images=2, **wrong)


@pytest.mark.parametrize(("scheduler", "step_noise"), [("ddim", {}), ("euler_a", {"step_noise_seed": 5})])
def test_an_image_from_given_noise_records_its_hash_and_no_seed(
    pipeline: Pipeline, scheduler: str, step_noise: dict[str, int]
) -> None:
    noise = normal_per_image(image_generators([1, 2]), (4, 8, 8))
    asked: dict[str, Any] = {"scheduler": scheduler, **STEPS}
    made = pipeline.generate(["a", "b"], seed=5, latents=noise, **asked)
    drawn = pipeline.generate("a", seed=5, **asked).settings[0]
    for prompt, settings, row in zip("ab", made.settings, noise, strict=True):
        own = {"prompt": prompt, "seed": None, "latents_hash": latents_hash(row), **step_noise}
        assert settings == {**drawn, **own}
    assert made.settings[0]["latents_hash"] != made.settings[1]["latents_hash"]


def test_the_record_of_given_noise_is_enough_to_make_the_image_again(pipeline: Pipeline) -> None:
    noise = normal_per_image(image_generators([1, 2]), (4, 8, 8))
    asked: dict[str, Any] = {"scheduler": "euler_a", **STEPS}
    made = pipeline.generate("a", seed=5, num_images=2, latents=noise, **asked)
    second = made.settings[1]
    again = pipeline.generate("a", seed=second["step_noise_seed"], latents=noise[1:], **asked)
    assert torch.allclose(again.latents[0], made.latents[1], atol=1e-4)
    assert again.settings[0] == second


def test_the_hash_is_of_the_values_in_any_type_and_layout() -> None:
    noise = torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(0)).half()
    assert latents_hash(noise) == latents_hash(noise.double().mT.contiguous().mT)
    assert latents_hash(noise) != latents_hash(noise.mT)


def test_a_png_from_given_noise_says_so_and_is_not_reproduced_from_other_noise(
    pipeline: Pipeline, tmp_path: Path
) -> None:
    noise = normal_per_image(image_generators([1]), (4, 8, 8))
    made = pipeline.generate("a", latents=noise, **STEPS)
    write_png(tmp_path / "a.png", made.images[0], made.settings[0])
    settings = read_settings(tmp_path / "a.png")
    assert settings["seed"] is None and settings["latents_hash"] == latents_hash(noise[0])
    assert "Seed" not in infotext(settings)
    with pytest.raises(UserError, match="was made from `latents=`, which the file does not contain"):
        read_original(tmp_path / "a.png")

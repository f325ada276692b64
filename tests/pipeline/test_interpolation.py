"""Images between two seeds or prompts: the ends are the plain images, and what lies between keeps its length."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ldm.errors import UserError
from ldm.generation.reproduce import read_original
from ldm.models.generation_settings import GenerationSettings
from ldm.noise import image_generators
from ldm.pipeline.batch_sampling import initial_noise
from ldm.pipeline.batches import Prompt, list_images
from ldm.pipeline.interpolation import slerp
from ldm.pipeline.pipeline import Generation, Pipeline
from tests.support.tiny_images import pixels
from tests.support.tiny_models import make_sd1

STEPS: dict[str, Any] = {"num_inference_steps": 2, "progress": False, "batch_size": 1}


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    return Pipeline(make_sd1(tmp_path_factory.mktemp("tokenizer")))


def made(pipeline: Pipeline, prompt: str, **settings: Any) -> Generation:
    return pipeline.generate(prompt, **{**STEPS, **settings})


def test_slerp_keeps_the_length_and_the_angle() -> None:
    start, end = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    third = slerp(start, end, 1 / 3, axes=(1,))
    torch.testing.assert_close(
        third, torch.tensor([[np.cos(np.pi / 6), np.sin(np.pi / 6)]], dtype=torch.float32)
    )
    torch.testing.assert_close(slerp(start, 3 * start, 0.5, axes=(1,)), 2 * start)
    assert slerp(start, -start, 0.5, axes=(1,)).isfinite().all()
    assert slerp(start, 0 * start, 0.5, axes=(1,)).isfinite().all()


def test_the_noise_between_two_seeds_is_standard_normal_and_each_images_own() -> None:
    settings = GenerationSettings(to_seed=9, frame=0.5)
    noise = initial_noise(image_generators([1, 2]), settings, (4, 64, 64))
    assert abs(float(noise.std()) - 1) < 0.02
    assert torch.equal(noise[1], initial_noise(image_generators([2]), settings, (4, 64, 64))[0])


def test_the_noise_goes_from_the_seed_to_the_other_one() -> None:
    def noise(**settings: Any) -> torch.Tensor:
        return initial_noise(image_generators([1]), GenerationSettings(**settings), (4, 16, 16)).flatten()

    start, end = noise(), initial_noise(image_generators([9]), GenerationSettings(), (4, 16, 16)).flatten()
    torch.testing.assert_close(noise(to_seed=9, frame=1.0), end)
    first = noise(to_seed=9, frame=0.25)
    assert (first - start).norm() < 0.5 * (first - end).norm()


@pytest.mark.parametrize("way", [{"to_seed": 9}, {"to_prompt": "a table"}])
def test_frames_are_near_the_end_that_they_are_near(pipeline: Pipeline, way: dict[str, Any]) -> None:
    start = made(pipeline, "a red apple", seed=3).latents
    end = made(pipeline, way.get("to_prompt", "a red apple"), seed=way.get("to_seed", 3)).latents
    for frame, near, far in ((0.02, start, end), (0.98, end, start)):
        found = made(pipeline, "a red apple", seed=3, frame=frame, **way).latents
        assert 0 < (found - near).norm() < 0.2 * (found - far).norm()


def test_the_ends_are_the_plain_images_bit_for_bit(pipeline: Pipeline) -> None:
    way = made(pipeline, "a red apple", seed=3, to_seed=9, to_prompt="a table", num_frames=3)
    ends = [made(pipeline, "a red apple", seed=3), made(pipeline, "a table", seed=9)]
    for index, end in zip((0, 2), ends, strict=True):
        assert torch.equal(way.latents[index], end.latents[0])
        assert way.settings[index] == end.settings[0]
    assert not any(torch.equal(way.latents[1], end.latents[0]) for end in ends)
    assert (way.settings[1]["frame"], way.settings[1]["to_seed"]) == (0.5, 9)


def test_a_frame_is_made_again_alone(pipeline: Pipeline, tmp_path: Path) -> None:
    way = made(pipeline, "a red apple", seed=3, to_prompt="a table", num_frames=4, num_images=2)
    assert len(way.images) == 8
    paths = way.save(tmp_path)
    for index in (1, 6):
        original = read_original(paths[index]).prompt
        again = made(pipeline, original.prompt, settings=original.settings)
        assert len(again.images) == 1
        assert abs(pixels(again.images[0]) - pixels(way.images[index])).max() <= 1


def test_how_many_images_there_are() -> None:
    def count(**settings: Any) -> int:
        return len(list_images([Prompt("a", GenerationSettings(**settings))]))

    assert count() == count(num_frames=5) == count(to_seed=3, frame=0.5) == 1
    assert (count(to_seed=3), count(to_prompt="b", num_frames=2), count(to_seed=3, num_images=2)) == (
        8,
        2,
        16,
    )
    assert count(to_seed=3, num_frames=1) == 1


def test_what_cannot_be_interpolated_is_refused(pipeline: Pipeline) -> None:
    with pytest.raises(UserError, match="latents are given too"):
        made(pipeline, "a", to_seed=3, frame=0.5, latents=torch.zeros(1, 4, 8, 8))
    with pytest.raises(UserError, match="do not join as many"):
        made(pipeline, "a AND b", to_prompt="c", frame=0.5, prompt_weights="comfy")

"""What the tasks `upscale` and `restore` tell the denoiser."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from ldm.data.sample import SampleDraw
from ldm.diffusion.schedulers import scheduler_class
from ldm.errors import UserError
from ldm.io.images import image_to_tensor, resize_and_crop
from ldm.models.generation_settings import GenerationSettings
from ldm.models.low_resolution import LowResolutionNoise, low_resolution_of
from ldm.tasks import TrainingInputs, task_for_images
from ldm.tasks.restore import Restore, label_of
from ldm.tasks.upscale import Upscale, noise_of_seeds, reduce_image
from ldm.types import Conditioning, Step
from tests.support.tiny_images import photo

PROMPT, NEGATIVE = (Conditioning(torch.full((1, 2, 3), value)) for value in (1.0, -1.0))
KEY: SampleDraw = (0, 0, "sample")


def no_encoder(pixel_values: Tensor) -> Tensor:
    raise AssertionError("nothing is encoded")


def drawn(count: int, size: int = 16) -> dict[str, Tensor]:
    made = [
        reduce_image(image_to_tensor(photo(size, size)), (n, 0, "sample"), factor=4) for n in range(count)
    ]
    return {
        "low_resolution": torch.stack([each["low_resolution"] for each in made]),
        "low_resolution_noise": torch.stack([each["low_resolution_noise"] for each in made]),
        "noise_level": torch.tensor([each["noise_level"] for each in made]),
    }


def test_the_low_resolution_image_is_the_image_resized_once_and_its_noise_is_the_samples_own() -> None:
    image = photo(24, 16)
    made = reduce_image(image_to_tensor(image), KEY, factor=4)
    assert torch.equal(made["low_resolution"], image_to_tensor(resize_and_crop(image, 4, 6)))
    again, other = (reduce_image(image_to_tensor(image), key, factor=4) for key in (KEY, (0, 1, "sample")))
    assert torch.equal(made["low_resolution_noise"], again["low_resolution_noise"])
    assert not torch.equal(made["low_resolution_noise"], other["low_resolution_noise"])
    assert made["noise_level"] == again["noise_level"] != other["noise_level"]


def test_the_level_is_a_class_label_below_the_highest_and_noises_by_the_schedule_of_its_own() -> None:
    given = {name: each.expand(1000, *each.shape[1:]) for name, each in drawn(1).items()}
    given["noise_level"] = torch.arange(1000) / 1000
    told = Upscale().training_conditioning(PROMPT.expand(1000), TrainingInputs(no_encoder, drawn=given))
    assert told.class_labels is not None and told.concat is not None
    levels = told.class_labels.numpy()
    assert levels.min() >= 0 and levels.max() == 349 and levels.mean() == pytest.approx(174.5, abs=1)
    theirs = scheduler_class("DDPMScheduler").from_config(LowResolutionNoise().scheduler_config())
    expected = theirs.add_noise(given["low_resolution"], given["low_resolution_noise"], told.class_labels)
    assert torch.equal(told.concat, expected)


def test_training_and_generation_tell_the_same() -> None:
    task, given = Upscale(), drawn(2)
    settings = GenerationSettings(noise_level=100)
    images = task.prepared({"low_resolution": given["low_resolution"]}, settings, [3, 4])
    used = task.generation_conditioning(PROMPT.expand(2), images, no_encoder)
    told = {
        **given,
        "low_resolution_noise": noise_of_seeds([3, 4], (3, 4, 4)),
        "noise_level": torch.tensor([100.5 / 350] * 2),
    }
    trained = task.training_conditioning(PROMPT.expand(2), TrainingInputs(no_encoder, drawn=told))
    assert used.concat is not None and trained.concat is not None
    assert torch.equal(used.concat, trained.concat)
    assert used.class_labels is not None and used.class_labels.tolist() == [100, 100]
    assert trained.class_labels is not None and torch.equal(used.class_labels, trained.class_labels)


def test_the_noise_of_an_image_belongs_to_its_seed_and_is_not_that_of_its_latents() -> None:
    both = noise_of_seeds([7, 8], (3, 4, 4))
    assert torch.equal(both[1:], noise_of_seeds([8], (3, 4, 4)))
    assert not torch.equal(both[0], torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(7))[0])


def test_the_negative_prompt_keeps_the_image_and_its_level() -> None:
    seen: list[Conditioning] = []

    def denoiser(
        latents: Tensor, timesteps: Tensor, conditioning: Conditioning, *, step: Step | None = None
    ) -> Tensor:
        seen.append(conditioning)
        return latents

    told = replace(PROMPT.expand(2), concat=torch.ones(2, 3, 2, 2), class_labels=torch.tensor([5, 9]))
    settings = GenerationSettings(guidance_scale=2.0).over(GenerationSettings())
    Upscale().guided(denoiser, told, NEGATIVE, settings)(torch.zeros(2, 4, 2, 2), torch.zeros(2), told)
    (both,) = seen
    assert both.class_labels is not None and both.class_labels.tolist() == [5, 9, 5, 9]
    assert both.concat is not None and torch.equal(both.concat, torch.ones(4, 3, 2, 2))
    assert both.prompt_embeds[:, 0, 0].tolist() == [-1, -1, 1, 1]


def test_settings_that_the_model_does_not_take() -> None:
    task = replace(Upscale(), factor=4)

    def completed(**given: int) -> GenerationSettings:
        return task.completed(GenerationSettings(**given), GenerationSettings(**given))  # type: ignore[arg-type]

    assert completed().upscale == completed(upscale=4).upscale == 4
    with pytest.raises(UserError, match="upscale is 2: this model enlarges 4 times: leave it out"):
        completed(upscale=2)
    assert completed(noise_level=350).noise_level == 350
    with pytest.raises(UserError, match="noise_level is 351: this model takes 0 to 350"):
        completed(noise_level=351)
    task = replace(task, low_resolution=LowResolutionNoise(max_noise_level=10))
    assert completed().noise_level == 10  # the default of 20 is no mistake of the user's


@pytest.mark.parametrize(
    ("config", "level", "said"),
    [
        ({"num_train_timesteps": 500}, 350, "scheduler_config.json has 500 noise levels: it must be 1000"),
        ({"trained_betas": [0.1]}, 350, "low_res_scheduler/scheduler_config.json: trained_betas is set"),
        ({}, 1000, "model_index.json has max_noise_level 1000: it must be a whole number from 1 to 999"),
        ({}, "350", "model_index.json has max_noise_level '350'"),
        (
            {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"},
            350,
            "has rescale_betas_zero_snr",
        ),
    ],
)
def test_a_schedule_that_cannot_be_used_is_refused(
    config: dict[str, object], level: object, said: str
) -> None:
    with pytest.raises(UserError, match=said):
        low_resolution_of(config, level, folder=Path("model"))


def test_the_schedule_of_a_folder_is_read_as_diffusers_does() -> None:
    for config in ({}, {"beta_schedule": "scaled_linear"}, LowResolutionNoise().scheduler_config()):
        theirs = scheduler_class("DDPMScheduler").from_config(config)
        ours = low_resolution_of(config, 350, folder=Path("model")).path()
        assert torch.equal(ours.alphas_cumprod, theirs.alphas_cumprod)


def test_restoring_tells_the_latents_of_the_damaged_image_and_its_strength_in_per_cent() -> None:
    task, damaged = Restore(), torch.rand(2, 3, 8, 8)

    def encode(pixel_values: Tensor) -> Tensor:
        return pixel_values[:, [0, 1, 2, 0], ::2, ::2]

    given = {"damaged": damaged, "damage_strength": torch.tensor([0.0, 0.254])}
    told = task.training_conditioning(PROMPT.expand(2), TrainingInputs(encode, drawn=given))
    assert told.concat is not None and torch.equal(told.concat, encode(damaged))
    assert told.class_labels is not None and told.class_labels.tolist() == [0, 25]
    images = task.prepared({"damaged": damaged}, GenerationSettings(restore=0.25), [0, 1])
    used = task.generation_conditioning(PROMPT.expand(2), images, encode)
    assert used.class_labels is not None and used.class_labels.tolist() == [25, 25]
    assert used.concat is not None and torch.equal(used.concat, told.concat)
    assert label_of(torch.tensor([0.0, 1.0])).tolist() == [0, 100]


def test_the_tasks_take_one_image() -> None:
    assert np.all([task_for_images(name, ["image"]).name == name for name in ("upscale", "restore")])
    with pytest.raises(
        UserError, match=r"trained for upscale has no use for a prompt alone: .*\(upscale: --image\)"
    ):
        task_for_images("upscale", [])

"""What each task tells the denoiser, and how it guides it."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from ldm.data.random_masks import SHARE_MASKED_WHOLE, draw_mask
from ldm.errors import UserError
from ldm.models.generation_settings import GenerationSettings
from ldm.noise import uniform
from ldm.tasks import TASKS, TrainingInputs, check_task, task_for_images
from ldm.tasks.edit import Edit, draw_drop
from ldm.tasks.inpaint import Inpaint
from ldm.types import Conditioning, Step

PROMPT, NEGATIVE = (Conditioning(torch.full((1, 2, 3), value)) for value in (1.0, -1.0))


def encode(pixel_values: Tensor) -> Tensor:
    """Four channels, 4 x 4 pixels a latent."""
    return torch.nn.functional.avg_pool2d(pixel_values, 4)[:, [0, 1, 2, 0]]


def test_tasks_are_chosen_by_the_images_given() -> None:
    chosen = {
        name: task_for_images("text-to-image", given).name
        for name, given in {"none": [], "one": ["image"], "two": ["image", "mask"]}.items()
    }
    assert chosen == {"none": "text-to-image", "one": "image-to-image", "two": "blended-inpaint"}
    assert task_for_images("inpaint", ["mask", "image"]).name == "inpaint"
    assert task_for_images("edit", ["image"]).name == "edit"
    message = r"a model trained for edit has no use for a prompt alone: .*\(edit: --image\)"
    with pytest.raises(UserError, match=message):
        task_for_images("edit", [])


def test_only_trainable_tasks_can_be_trained() -> None:
    trainable = [name for name, task in TASKS.items() if task.trained_as == name]
    given = ["text-to-image", "inpaint", "edit", "upscale", "restore"]
    assert trainable == [*given, "control", "control-labels", "depth"]
    with pytest.raises(
        UserError, match="no model is trained for 'image-to-image': a text-to-image model can do it"
    ):
        check_task("image-to-image")


def test_inpainting_conditions_on_the_mask_and_the_image_with_a_grey_hole() -> None:
    image = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    mask = torch.zeros(2, 1, 8, 8)
    mask[0, 0, 3, 3] = 1  # a single pixel masks its latent
    mask[1, 0, :, 4:] = 1
    task, prompt = Inpaint(), PROMPT.expand(2)
    trained = task.training_conditioning(prompt, TrainingInputs(encode, {}, {"image": image}, {"mask": mask}))
    used = task.generation_conditioning(prompt, {"image": image, "mask": mask}, encode)
    assert trained.concat is not None and used.concat is not None
    assert torch.equal(trained.concat, used.concat)
    assert trained.concat.shape == (2, task.concat_channels(4), 2, 2)
    assert trained.concat[0, 0].tolist() == [[1, 0], [0, 0]]
    assert trained.concat[1, 0].tolist() == [[0, 1], [0, 1]]
    assert torch.equal(trained.concat[1, 1:, :, 1], torch.zeros(4, 2))  # grey is 0
    assert torch.equal(trained.concat[1, 1:, :, 0], encode(image)[1, :, :, 0])


def test_masks_are_drawn_from_the_key() -> None:
    size = (24, 40)
    masks = [draw_mask((seed, 0, "sample"), size)["mask"] for seed in range(400)]
    assert torch.equal(draw_mask((3, 0, "sample"), size)["mask"], masks[3])
    assert not torch.equal(draw_mask((3, 1, "sample"), size)["mask"], masks[3])
    assert {tuple(mask.shape) for mask in masks} == {(1, 24, 40)}
    assert set(torch.stack(masks).unique().tolist()) == {0.0, 1.0}
    shares = np.array([float(mask.mean()) for mask in masks])
    assert shares.min() > 0
    assert np.mean(shares == 1) == pytest.approx(SHARE_MASKED_WHOLE, abs=0.06)
    partial = shares[shares < 1]
    assert 0.1 < np.median(partial) < 0.5 and partial.min() < 0.05 and partial.max() > 0.6


def test_dropping_the_source_and_the_instruction() -> None:
    keys = [(seed, 0, "sample") for seed in range(2000)]
    source = np.array([draw_drop(key, (8, 8))["drop_source"] for key in keys]) == 1
    text = np.array([uniform(*key, "caption dropout") < 0.1 for key in keys])
    for dropped in (source & ~text, text & ~source, source & text):
        assert np.mean(dropped) == pytest.approx(0.05, abs=0.015)


def test_a_dropped_source_is_zero_in_training_alone() -> None:
    source = torch.ones(2, 4, 2, 2)
    inputs = TrainingInputs(encode, {"source": source}, {}, {"drop_source": torch.tensor([1.0, 0.0])})
    trained = Edit().training_conditioning(PROMPT.expand(2), inputs).concat
    assert trained is not None and trained[0].abs().max() == 0 and torch.equal(trained[1], source[1])
    measured = Edit().training_conditioning(PROMPT.expand(2), replace(inputs, training=False)).concat
    assert measured is not None and torch.equal(measured, source)


class Counting:
    """A denoiser that answers with text + source mean, and counts rows."""

    rows = 0

    def __call__(
        self, latents: Tensor, timesteps: Tensor, conditioning: Conditioning, *, step: Step | None = None
    ) -> Tensor:
        assert conditioning.concat is not None
        self.rows += len(latents)
        text = conditioning.prompt_embeds.mean(dim=(1, 2)).view(-1, 1, 1, 1)
        return latents + text + 10 * conditioning.concat + 3 * text * conditioning.concat


@pytest.mark.parametrize(
    ("text_scale", "image_scale", "rows"), [(7.5, 1.5, 6), (1.0, 1.5, 6), (7.5, 0.9, 6), (1.0, 1.0, 2)]
)
def test_edit_guidance_is_linear_in_both_scales(text_scale: float, image_scale: float, rows: int) -> None:
    latents, time = torch.zeros(2, 4, 2, 2), torch.zeros(2)
    conditioning = replace(
        PROMPT.expand(2), concat=torch.tensor([0.5, 2.0]).view(2, 1, 1, 1).expand(2, 4, 2, 2)
    )
    settings = GenerationSettings(guidance_scale=text_scale, image_guidance_scale=image_scale)
    denoiser = Counting()

    def alone(text: Conditioning, with_source: bool) -> Tensor:
        concat = conditioning.concat if with_source else torch.zeros(2, 4, 2, 2)
        return Counting()(latents, time, replace(text.expand(2), concat=concat))

    nothing, source, both = alone(NEGATIVE, False), alone(NEGATIVE, True), alone(PROMPT, True)
    guided = Edit().guided(denoiser, conditioning, NEGATIVE, settings)(latents, time, conditioning)
    expected = nothing + image_scale * (source - nothing) + text_scale * (both - source)
    torch.testing.assert_close(guided, expected)
    assert denoiser.rows == rows
    if text_scale == image_scale == 1:
        assert torch.equal(guided, both)


def test_the_negative_prompt_has_the_same_images() -> None:
    conditioning = replace(PROMPT.expand(2), concat=torch.ones(2, 4, 2, 2))
    seen: list[Conditioning] = []

    def denoiser(
        latents: Tensor, timesteps: Tensor, conditioning: Conditioning, *, step: Step | None = None
    ) -> Tensor:
        seen.append(conditioning)
        return latents

    settings = GenerationSettings(guidance_scale=2.0).over(GenerationSettings())
    guided = Inpaint().guided(denoiser, conditioning, NEGATIVE, settings)
    guided(torch.zeros(2, 4, 2, 2), torch.zeros(2), conditioning)
    (both,) = seen
    assert both.concat is not None and torch.equal(both.concat, torch.ones(4, 4, 2, 2))
    assert both.prompt_embeds[:, 0, 0].tolist() == [-1, -1, 1, 1]

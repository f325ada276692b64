"""Images from images: image-to-image and inpainting with a text-to-image model."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionImg2ImgPipeline, StableDiffusionInpaintPipeline
from PIL import Image

from ldm.diffusion.scheduler_names import SCHEDULERS
from ldm.errors import UserError
from ldm.pipeline.pipeline import Pipeline
from ldm.pipeline.record import read_record
from tests.support.tiny_images import (
    NOISE,
    PROMPTS,
    FixedNoise,
    box_mask,
    clean_latents,
    photo,
    pixels,
    stock,
)
from tests.support.tiny_models import make_sd1

pytestmark = pytest.mark.filterwarnings("ignore:Should have t[ab][<>]=t[01] but got:UserWarning")

AVAILABLE = [name for name, entry in SCHEDULERS.items() if entry.available]
PARITY = ["ddim", "ddpm", "euler", "euler_a", "dpmpp_2m", "unipc", "heun", "pndm", "lms", "deis"]


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    return Pipeline(make_sd1(tmp_path_factory.mktemp("tokenizer")))


def test_progress_counts_the_steps_that_are_made(pipeline: Pipeline) -> None:
    told: list[tuple[int, int]] = []
    common = {"image": photo(seed=1), "strength": 0.5, "num_inference_steps": 4, "batch_size": 1}
    pipeline.generate(PROMPTS, **common, on_step=lambda done, total, *_: told.append((done, total)))
    assert told == [(done, 4) for done in range(1, 5)]  # two steps of four, of two images


# Their PLMS, begun at a later step, works one level off: tests/museum/test_plms_start.py.
CASES = [
    (name, strength)
    for name in PARITY
    for strength in (0.5, 1.0)
    if not SCHEDULERS[name].stochastic and (name, strength) != ("pndm", 0.5)
]


@pytest.mark.parametrize(("scheduler", "strength"), CASES)
def test_image_to_image_equals_diffusers(
    pipeline: Pipeline, scheduler: str, strength: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = [photo(seed=1), photo(seed=2)]
    common = {"num_inference_steps": 6, "guidance_scale": 5.0, "strength": strength}
    ours = pipeline.generate(PROMPTS, image=images, scheduler=scheduler, latents=NOISE, **common).images
    module = "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_img2img"
    monkeypatch.setattr(f"{module}.randn_tensor", FixedNoise())
    theirs = stock(StableDiffusionImg2ImgPipeline, pipeline, scheduler)(
        PROMPTS, image=clean_latents(pipeline, images), negative_prompt=["", ""], **common
    ).images
    for mine, other in zip(ours, theirs, strict=True):
        assert np.abs(pixels(mine) - pixels(other)).max() <= 1


@pytest.mark.parametrize(("scheduler", "strength"), CASES)
def test_inside_the_mask_inpainting_equals_diffusers(
    pipeline: Pipeline, scheduler: str, strength: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, mask = [photo(seed=1), photo(seed=2)], box_mask((16, 16), (4, 6, 11, 15))
    common = {"num_inference_steps": 6, "guidance_scale": 5.0, "strength": strength}
    ours = pipeline.generate(
        PROMPTS, image=images, mask=mask, scheduler=scheduler, latents=NOISE, **common
    ).images
    module = "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_inpaint"
    monkeypatch.setattr(f"{module}.randn_tensor", FixedNoise())
    theirs = stock(StableDiffusionInpaintPipeline, pipeline, scheduler)(
        PROMPTS,
        image=clean_latents(pipeline, images),
        mask_image=[mask, mask],
        masked_image_latents=torch.zeros(2, 4, 8, 8),  # drawn, and unused with four channels
        height=16,
        width=16,
        negative_prompt=["", ""],
        **common,
    ).images
    inside = np.asarray(mask) > 0
    for mine, other, image in zip(ours, theirs, images, strict=True):
        assert np.abs(pixels(mine) - pixels(other))[inside].max() <= 1
        assert np.array_equal(pixels(mine)[~inside], pixels(image)[~inside])
        assert not np.array_equal(pixels(other)[~inside], pixels(image)[~inside])  # theirs changes them


MASKS = {
    "one pixel": ((17, 13), (5, 7, 5, 7)),
    "all": ((16, 16), (0, 0, 15, 15)),
    "to the border of an odd size": ((15, 9), (10, 0, 14, 8)),
    "a thin line": ((31, 16), (0, 3, 30, 3)),
}


@pytest.mark.parametrize("scheduler", AVAILABLE)
def test_no_pixel_outside_the_mask_changes(pipeline: Pipeline, scheduler: str) -> None:
    size, box = MASKS["one pixel"]
    image, mask = photo(*size), box_mask(size, box)
    made = pipeline.generate("", image=image, mask=mask, scheduler=scheduler, num_inference_steps=3).images[0]
    changed = (pixels(made) != pixels(image)).any(axis=2)
    assert made.size == size and not changed[np.asarray(mask) == 0].any()
    assert changed[7, 5]


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("options", [{}, {"mask_feather": 3, "match_colors": True}])
def test_nor_with_other_masks_sizes_and_blending(
    pipeline: Pipeline, name: str, options: dict[str, Any]
) -> None:
    size, box = MASKS[name]
    image, mask = photo(*size), box_mask(size, box)
    made = pipeline.generate("", image=image, mask=mask, num_inference_steps=2, **options).images[0]
    outside = np.asarray(mask) == 0
    assert np.array_equal(pixels(made)[outside], pixels(image)[outside])
    assert (pixels(made) != pixels(image)).any()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16"])
def test_an_image_in_any_mode_keeps_the_pixels_outside(pipeline: Pipeline, mode: str, tmp_path: Path) -> None:
    grey = photo().convert("L")
    image = (
        Image.fromarray(np.asarray(grey).astype(np.uint16) * 257) if mode == "I;16" else grey.convert(mode)
    )
    file = tmp_path / ("image.tif" if mode == "CMYK" else "image.png")
    image.save(file)
    mask = box_mask((16, 16), (0, 0, 7, 15))
    made = [
        pipeline.generate("", image=given, mask=mask, num_inference_steps=1)
        for given in (image, file, str(file))
    ]
    expected = grey.convert("1" if mode == "1" else "L").convert("RGB")
    for each in made:
        if mode != "CMYK":
            assert np.array_equal(pixels(each.images[0])[:, 8:], pixels(expected)[:, 8:])
        assert each.records[0].inputs == made[0].records[0].inputs
        assert np.array_equal(pixels(each.images[0]), pixels(made[0].images[0]))


def test_each_prompt_with_several_images_gives_what_each_alone_gives(pipeline: Pipeline) -> None:
    images, mask = [photo(seed=1), photo(seed=2)], box_mask((16, 16), (0, 0, 7, 15))
    options: dict[str, Any] = {"num_images": 2, "seed": 3, "num_inference_steps": 2, "scheduler": "euler_a"}
    for masked in (None, mask):
        together = pipeline.generate(PROMPTS, image=images, mask=masked, **options).images
        alone = [
            pipeline.generate(
                prompt, image=image, mask=masked, **{**options, "num_images": 1, "seed": 3 + number}
            ).images[0]
            for prompt, image in zip(PROMPTS, images, strict=True)
            for number in range(2)
        ]
        for one, other in zip(together, alone, strict=True):
            assert np.abs(pixels(one) - pixels(other)).max() <= 1


def test_strength(pipeline: Pipeline) -> None:
    image = photo()

    def made(strength: float, steps: int = 10) -> Any:
        return pipeline.generate("", image=image, strength=strength, num_inference_steps=steps, seed=1)

    round_trip = pipeline.autoencoder.decode(clean_latents(pipeline, [image]))
    decoded = np.rint(((round_trip[0] / 2 + 0.5).clamp(0, 1) * 255).permute(1, 2, 0).numpy())
    assert np.abs(pixels(made(0.0).images[0]) - decoded).max() <= 1
    moved = [
        float((made(strength).latents - clean_latents(pipeline, [image])).norm())
        for strength in (0.1, 0.5, 0.9)
    ]
    assert moved == sorted(moved)
    # a tenth of ten steps is one step, and never none
    assert np.array_equal(pixels(made(0.1).images[0]), pixels(made(0.12).images[0]))
    assert not np.array_equal(pixels(made(0.01).images[0]), pixels(made(0.0).images[0]))


def test_sizes_follow_the_image(pipeline: Pipeline) -> None:
    image = photo(21, 13)
    sizes = {(): (21, 13), ("height",): (42, 26), ("width",): (26, 16), ("height", "width"): (26, 26)}
    for names, size in sizes.items():
        made = pipeline.generate("", image=image, num_inference_steps=1, **dict.fromkeys(names, 26))
        assert made.images[0].size == size
        assert (made.records[0].settings.width, made.records[0].settings.height) == size


def test_the_record_names_the_images_and_only_then_their_settings(pipeline: Pipeline, tmp_path: Path) -> None:
    mask = box_mask((16, 16), (0, 0, 7, 15))
    made = pipeline.generate("", image=photo(), mask=mask, num_inference_steps=1)
    (path,) = made.save(tmp_path)
    record = read_record(path)
    assert record == made.records[0] and record.record_version == 3
    assert (record.inputs["image"].width, record.inputs["mask"].height) == (16, 16)
    assert record.settings.strength == 1.0
    plain = pipeline.generate("", num_inference_steps=1).records[0]
    assert plain.record_version == 2
    assert {"inputs", "strength", "mask_feather", "match_colors"} & plain.to_json().keys() == set()
    from_image = pipeline.generate("", image=photo(), num_inference_steps=1).records[0].to_json()
    assert from_image["strength"] == 0.8 and "mask_feather" not in from_image


def test_the_transparent_part_as_the_mask(pipeline: Pipeline) -> None:
    image = photo().convert("RGBA")
    image.putalpha(box_mask((16, 16), (0, 0, 7, 15)))
    made = pipeline.generate("", image=image, mask="alpha", num_inference_steps=1).images[0]
    assert np.array_equal(pixels(made)[:, :8], pixels(image)[:, :8, :3])
    assert not np.array_equal(pixels(made)[:, 8:], pixels(image)[:, 8:, :3])


BLACK = Image.new("L", (16, 16))
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "a mask alone": ({"mask": BLACK}, "without an image"),
    "a black mask": ({"image": photo(), "mask": BLACK}, "mask is black, so nothing would change"),
    "an opaque image": ({"image": photo(), "mask": "alpha"}, "image has nothing transparent"),
    "a mask of another size": (
        {"image": photo(), "mask": box_mask((16, 8), (0, 0, 3, 3))},
        "mask has 16 x 8 pixels, and image 16 x 16: give a mask of the image's size",
    ),
    "a tensor": ({"image": torch.zeros(1, 4, 8, 8)}, "image is a Tensor: give a file name or a PIL image"),
    "no file": ({"image": "missing.png"}, "missing.png: No such file"),
    "three images for two prompts": ({"image": [photo()] * 3}, "2 prompts and 3 images cannot be paired"),
    "strength without an image": (
        {"strength": 0.5},
        "strength has no effect on text-to-image, .*: add --image, or leave strength out",
    ),
    "feather without a mask": (
        {"image": photo(), "mask_feather": 2},
        "mask_feather has no effect on image-to-image, .*: add --mask, or",
    ),
    "too strong": (
        {"image": photo(), "strength": 1.5},
        "strength is 1.5: it must be a number from 0 to 1",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_images_are_refused(pipeline: Pipeline, name: str) -> None:
    given, message = WRONG[name]
    with pytest.raises(UserError, match=message):
        pipeline.generate(PROMPTS, **given)


def test_a_file_that_changes_during_the_call_is_an_error(pipeline: Pipeline, tmp_path: Path) -> None:
    file = tmp_path / "image.png"
    photo().save(file)

    def replaced(*_: Any) -> None:
        photo(seed=9).save(file)

    with pytest.raises(UserError, match=r"image\.png has changed since this call began"):
        pipeline.generate(["a", "b"], image=file, batch_size=1, num_inference_steps=1, on_step=replaced)

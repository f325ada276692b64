"""Models that enlarge or restore: used as diffusers does, any size, alone as in a batch, saved for stock programs."""

import json
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import StableDiffusionUpscalePipeline
from PIL import Image

from ldm.errors import LdmWarning, UserError
from ldm.generation.work import work_of
from ldm.models.loading.model import load_parts, save_parts
from ldm.noise import generator_for
from ldm.pipeline.batches import Prompt, list_images
from ldm.pipeline.input_images import read_inputs
from ldm.pipeline.pipeline import Pipeline
from ldm.pipeline.record import read_record
from tests.support.tiny_images import photo, pixels, stock_scheduler
from tests.support.tiny_models import make_sd1
from tests.support.tiny_tasks import make_labelled

SCHEDULERS = ["ddim", "euler", "dpmpp_2m", "unipc", "pndm", "lms", "heun", "deis"]
PROMPTS = ["a red apple", "a blue square", "a green circle"]
SEEDS = [3, 4, 5]
IMAGES = [photo(8, 6, seed) for seed in range(3)]
NOISE = torch.cat([torch.randn(1, 4, 6, 8, generator=torch.Generator().manual_seed(s)) for s in SEEDS])


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Pipeline]:
    folder = tmp_path_factory.mktemp("models")
    return {task: Pipeline(make_labelled(folder / task, task)) for task in ("upscale", "restore")}


@pytest.fixture(scope="module")
def saved(models: dict[str, Pipeline], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "model"
    save_parts(models["upscale"].parts, folder)
    return folder


@pytest.fixture(scope="module")
def theirs(saved: Path) -> StableDiffusionUpscalePipeline:
    pipe = StableDiffusionUpscalePipeline.from_pretrained(saved)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("level", [0, 350])
def test_upscaling_equals_diffusers_on_the_saved_model(
    models: dict[str, Pipeline], theirs: Any, scheduler: str, level: int
) -> None:
    """Ours has another scaling factor and a shift of the latents; theirs reads them folded into the weights."""
    model = models["upscale"]
    common: dict[str, Any] = {"num_inference_steps": 4, "guidance_scale": 4.0, "noise_level": level}
    ours = model.generate(PROMPTS, image=IMAGES, scheduler=scheduler, seeds=SEEDS, **common).images
    theirs.scheduler = stock_scheduler(scheduler, model.scheduler_config)
    generators = [generator_for(seed, "low-resolution noise") for seed in SEEDS]
    expected = theirs(
        PROMPTS, image=IMAGES, latents=NOISE, generator=generators, negative_prompt=[""] * 3, **common
    ).images
    for mine, other in zip(ours, expected, strict=True):
        assert mine.size == other.size == (16, 12)
        assert np.abs(pixels(mine) - pixels(other)).max() <= 1


def test_a_saved_upscaler_gives_the_same_images_and_knows_what_it_is(
    models: dict[str, Pipeline], saved: Path, tmp_path: Path
) -> None:
    again = load_parts(saved)
    assert (again.task, again.family.name, again.autoencoder.scaling_factor) == (
        "upscale",
        "sd-upscaler",
        0.08333,
    )
    assert again.low_resolution == models["upscale"].parts.low_resolution
    options: dict[str, Any] = {"image": IMAGES[0], "seed": 3, "num_inference_steps": 2}
    one, two = (each.generate("x", **options) for each in (models["upscale"], Pipeline(again)))
    assert np.abs(pixels(one.images[0]) - pixels(two.images[0])).max() <= 1
    pixel_values = torch.rand(1, 3, 8, 8) * 2 - 1
    before, after = (each.autoencoder for each in (models["upscale"], Pipeline(again)))
    noise = torch.randn(1, 4, 4, 4)
    torch.testing.assert_close(
        after.sample_posterior(after.encode(pixel_values), noise),
        before.sample_posterior(before.encode(pixel_values), noise),
        atol=1e-5,
        rtol=1e-4,
    )
    save_parts(again, tmp_path / "again")  # nothing is folded twice
    assert (tmp_path / "again/vae/diffusion_pytorch_model.safetensors").read_bytes() == (
        saved / "vae/diffusion_pytorch_model.safetensors"
    ).read_bytes()


def test_a_stock_folder_is_read_as_the_stock_pipeline_reads_it(saved: Path, tmp_path: Path) -> None:
    folder = tmp_path / "stock"
    save_parts(load_parts(saved), folder)
    (folder / "ldm.json").unlink()
    config = json.loads((folder / "vae/config.json").read_text())
    (folder / "vae/config.json").write_text(json.dumps({**config, "scaling_factor": 0.18215}))
    with pytest.warns(
        LdmWarning, match="scaling_factor 0.18215 of the vae is taken for 0.08333, as StableDiff"
    ):
        parts = load_parts(folder)
    assert (parts.task, parts.autoencoder.scaling_factor) == ("upscale", 0.08333)
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "max_noise_level": 1000}))
    with pytest.raises(UserError, match="has max_noise_level 1000"):
        load_parts(folder)


def test_a_saved_restorer_knows_what_it_is_and_stock_programs_read_its_parts(
    models: dict[str, Pipeline], tmp_path: Path
) -> None:
    save_parts(models["restore"].parts, tmp_path / "model")
    for _ in range(2):
        again = load_parts(tmp_path / "model")
        assert (again.task, again.low_resolution) == ("restore", None)
        (tmp_path / "model/ldm.json").unlink(missing_ok=True)
    loaded = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "model", safety_checker=None)
    assert (loaded.unet.config.in_channels, loaded.unet.config.num_class_embeds) == (8, 101)
    options: dict[str, Any] = {
        "image": photo(), "num_inference_steps": 2, "restore": 0.7, "scheduler": "ddim", "guidance_scale": 2.0,
    }  # fmt: skip
    one, two = (each.generate("x", **options) for each in (models["restore"], Pipeline(again)))
    assert np.array_equal(pixels(one.images[0]), pixels(two.images[0]))


@pytest.mark.parametrize("task", ["upscale", "restore"])
def test_each_prompt_with_several_images_gives_what_each_alone_gives(
    models: dict[str, Pipeline], task: str
) -> None:
    model, images = models[task], [photo(8, 8, 1), photo(8, 8, 2)]
    options: dict[str, Any] = {"num_inference_steps": 2, "scheduler": "euler_a", "seed": 3}
    together = model.generate(PROMPTS[:2], image=images, num_images=2, **options).images
    alone = [
        model.generate(prompt, image=image, **{**options, "seed": 3 + number}).images[0]
        for prompt, image in zip(PROMPTS[:2], images, strict=True)
        for number in range(2)
    ]
    for one, other in zip(together, alone, strict=True):
        assert np.abs(pixels(one) - pixels(other)).max() <= 1
    assert np.abs(pixels(together[0]) - pixels(together[1])).max() > 1


def test_the_label_and_the_noise_reach_the_network(models: dict[str, Pipeline]) -> None:
    def made(task: str, **settings: Any) -> Any:
        return pixels(
            models[task].generate("", image=photo(8, 8), num_inference_steps=2, seed=1, **settings).images[0]
        )

    assert not np.array_equal(made("upscale", noise_level=0), made("upscale", noise_level=300))
    assert not np.array_equal(made("restore", restore=0.1), made("restore", restore=0.9))
    assert np.array_equal(made("restore", restore=0.101), made("restore", restore=0.1))  # in per cent


SIZES: dict[str, tuple[tuple[int, int], dict[str, int], tuple[int, int]]] = {
    "as large as the factor makes it": ((5, 3), {}, (10, 6)),
    "one pixel": ((1, 1), {}, (2, 2)),
    "a height keeps the shape": ((6, 4), {"height": 6}, (9, 6)),
    "both": ((6, 4), {"height": 7, "width": 9}, (9, 7)),
}


@pytest.mark.parametrize("name", SIZES)
def test_sizes_of_upscaled_images_follow_the_image(models: dict[str, Pipeline], name: str) -> None:
    given, settings, size = SIZES[name]
    made = models["upscale"].generate("", image=photo(*given), num_inference_steps=1, **settings)
    assert made.images[0].size == size
    full = made.records[0].settings
    assert (full.width, full.height, full.upscale, full.noise_level) == (*size, 2, 20)


def test_images_of_several_sizes_in_one_call(models: dict[str, Pipeline]) -> None:
    images = [photo(4, 4), photo(6, 2), photo(4, 4, seed=1)]
    for task, factor in (("upscale", 2), ("restore", 1)):
        made = models[task].generate("x", image=images, num_inference_steps=1)
        assert [each.size for each in made.images] == [(factor * x.width, factor * x.height) for x in images]
        multiple = 2 // factor
        assert [each.shape for each in made.latents] == [
            (4, x.height // multiple, x.width // multiple) for x in images
        ]


def test_the_engine_is_chosen_by_the_size_that_is_made(models: dict[str, Pipeline]) -> None:
    images = list_images([Prompt("x", inputs=read_inputs(photo(9, 7), None))])
    work = work_of(models["upscale"], images)
    assert (work.height, work.width) == (7, 9)


def test_records_hold_the_settings_of_the_task_and_make_the_image_again(
    models: dict[str, Pipeline], tmp_path: Path
) -> None:
    for task, own in (("upscale", {"upscale", "noise_level"}), ("restore", {"restore"})):
        made = models[task].generate("x", image=photo(20, 8), num_inference_steps=1, tile_size=12)
        record = read_record(made.save(tmp_path / task)[0])
        shared = {"tile_size", "tile_overlap"}
        assert own | shared <= record.to_json().keys() and record.task == task
        assert not {"strength", "mask_feather"} & record.to_json().keys()
        again = models[task].generate("x", image=photo(20, 8), settings=record.settings, seed=record.seed)
        assert np.array_equal(pixels(again.images[0]), pixels(made.images[0]))


def test_given_noise_leaves_the_noise_of_the_image_to_the_seed(models: dict[str, Pipeline]) -> None:
    def made(seed: int) -> Any:
        options: dict[str, Any] = {"image": IMAGES[0], "num_inference_steps": 1, "scheduler": "ddim"}
        return models["upscale"].generate("", latents=NOISE[:1], seed=seed, **options)

    record = made(7).records[0]
    assert (record.seed, record.step_noise_seed) == (None, 7)
    assert not np.array_equal(pixels(made(7).images[0]), pixels(made(8).images[0]))


@pytest.mark.parametrize("task", ["upscale", "restore"])
def test_large_images_are_made_in_windows_without_seams(models: dict[str, Pipeline], task: str) -> None:
    """A jump where a window begins would show as a larger step between neighbouring latents there than elsewhere."""
    smooth = Image.fromarray(np.tile(np.linspace(0, 255, 48).astype(np.uint8), (48, 1))).convert("RGB")
    model, options = models[task], {"num_inference_steps": 3, "guidance_scale": 1.0, "scheduler": "ddim"}
    side = 96 if task == "upscale" else 48
    tiled = model.generate("", image=smooth, tile_size=side // 3, tile_overlap=side // 6, **options)
    whole = model.generate("", image=smooth, tile_size=0, **options)
    assert tiled.images[0].size == whole.images[0].size == (side, side)
    difference = (tiled.latents - whole.latents)[0]
    steps = difference.diff(dim=-1).abs().mean(dim=(0, 1))
    step = side // model.autoencoder.pixels_per_latent // 6
    borders = [place - 1 for place in range(step, 6 * step, step)]
    assert float(steps[borders].mean()) <= 1.5 * float(steps.mean())


def test_windows_of_the_models_own_size_are_the_default(models: dict[str, Pipeline]) -> None:
    """A tiny model is made for 16 pixels: windows bound the memory for any size."""
    for width, size in ((8, 0), (9, 16)):
        full = (
            models["upscale"].generate("", image=photo(width, 4), num_inference_steps=1).records[0].settings
        )
        assert (full.tile_size, full.tile_overlap) == (size, size // 4)


def test_each_window_keeps_its_own_deep_features(models: dict[str, Pipeline]) -> None:
    """Of four steps in two windows, every second one of each window goes through the deep levels."""
    passes: list[int] = []
    middle = models["upscale"].denoiser.unet.mid_block
    hook = middle.register_forward_hook(lambda *_: passes.append(1))
    try:
        models["upscale"].generate(
            "",
            image=photo(16, 8),
            num_inference_steps=4,
            guidance_scale=1.0,
            scheduler="ddim",
            deep_features_every=2,
            tile_size=16,
            tile_overlap=0,
        )
    finally:
        hook.remove()
    assert len(passes) == 2 * 2


WRONG: dict[str, tuple[str, dict[str, Any], str]] = {
    "a level above 999": (
        "upscale",
        {"noise_level": 1000},
        "noise_level is 1000: it must be a whole number from 0 to",
    ),
    "a level above the model's": (
        "upscale",
        {"noise_level": 351},
        "noise_level is 351: this model takes 0 to 350",
    ),
    "a negative level": (
        "upscale",
        {"noise_level": -1},
        "noise_level is -1: it must be a whole number from 0",
    ),
    "another factor": (
        "upscale",
        {"upscale": 4},
        "upscale is 4: this model enlarges 2 times: leave it out, or give",
    ),
    "too large": (
        "upscale",
        {"image": Image.new("RGB", (8193, 1))},
        r"an image of 8193 x 1 pixels would give one of 16386 x 2: shrink it, or set height and width: both must be "
        "at most 16384",
    ),
    "windows smaller than their overlap": (
        "upscale",
        {"tile_size": 8, "tile_overlap": 8},
        "tile_size is 8 and tile_overlap 8: make the windows larger than their overlap",
    ),
    "windows smaller than a latent": (
        "restore",
        {"tile_size": 1},
        "tile_size is 1: it must be 0 or at least 2",
    ),
    "no image": ("upscale", {"image": None}, "trained for upscale has no use for a prompt alone"),
    "a mask": (
        "restore",
        {"mask": Image.new("L", (8, 8), 255)},
        r"trained for restore has no use for --image and --mask: .*\(restore: --image\)",
    ),
    "too strong": ("restore", {"restore": 1.2}, "restore is 1.2: it must be a number from 0 to 1"),
    "the setting of another task": (
        "restore",
        {"noise_level": 3},
        "noise_level has no effect on restore, only on upscale: use a model trained for upscale, or leave",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_done_is_refused_in_one_line(models: dict[str, Pipeline], name: str) -> None:
    task, given, said = WRONG[name]
    with pytest.raises(UserError, match=said):
        models[task].generate("x", **{"image": photo(8, 8), "num_inference_steps": 1, **given})


def test_models_for_other_tasks_say_what_is_needed(tmp_path: Path) -> None:
    model = Pipeline(make_sd1(tmp_path))
    for name, value in (("upscale", 4), ("restore", 0.5)):
        said = f"{name} has no effect on image-to-image, only on {name}: use a model trained for {name}, or leave"
        with pytest.raises(UserError, match=said):
            model.generate("x", image=photo(8, 8), **{name: value})
    with pytest.raises(
        UserError, match="an image of 20000 x 1 pixels would give one of 20000 x 1: shrink it"
    ):
        model.generate("x", image=Image.new("RGB", (20000, 1)))

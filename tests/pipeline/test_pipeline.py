"""Pipeline.generate: what an image depends on, warnings and errors."""

import inspect
import json
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import ldm
from ldm import GenerationSettings, LdmWarning, UserError
from ldm.noise import image_generators, normal_per_image
from ldm.pipeline.pipeline import Generation, Pipeline, load_pipeline, pick_device
from ldm.pipeline.record import read_settings
from ldm.types import Conditioning, Step
from tests.support.tiny_models import make_sd1, make_sd2

PROMPTS = ["a red apple", "the blue square", ""]


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    return Pipeline(make_sd1(tmp_path_factory.mktemp("tokenizer")), model_id="tiny")


def difference(first: Image.Image, second: Image.Image) -> int:
    return int(np.abs(np.asarray(first, dtype=int) - np.asarray(second, dtype=int)).max())


class Recorder:
    """Wraps a denoiser and keeps the latents of its first call for each batch."""

    def __init__(self, pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
        self.first: list[Tensor] = []
        self.num_calls = 0
        self.forward = pipeline.denoiser.forward
        monkeypatch.setattr(pipeline.denoiser, "forward", self)

    def __call__(
        self, latents: Tensor, timesteps: Tensor, conditioning: Conditioning, *, step: Step | None = None
    ) -> Tensor:
        assert step is not None
        self.num_calls += 1
        if step.evaluation == 0:
            self.first.append(latents)
        return self.forward(latents, timesteps, conditioning, step=step)


@pytest.mark.parametrize("scheduler", ["ddim", "euler_a"])
def test_an_image_is_the_same_alone_in_a_batch_and_in_another_order(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, scheduler: str
) -> None:
    settings: dict[str, Any] = {"seed": 5, "num_images": 2, "scheduler": scheduler, "guidance_scale": 1.0}
    ways: list[dict[str, Any]] = [
        {"prompts": PROMPTS, "batch_size": 6},
        {"prompts": PROMPTS, "batch_size": 4},
        {"prompts": PROMPTS[::-1], "batch_size": 3},
    ]
    made: list[dict[tuple[str, int], tuple[Image.Image, Tensor]]] = []
    for way in [*ways, *({"prompts": prompt, "batch_size": 1} for prompt in PROMPTS)]:
        recorder = Recorder(pipeline, monkeypatch)
        result = pipeline.generate(**way, **settings)
        keys = [(s["prompt"], s["seed"]) for s in result.settings]
        made.append(dict(zip(keys, zip(result.images, torch.cat(recorder.first), strict=True), strict=True)))
        monkeypatch.undo()
    reference = made[0]
    assert len(reference) == 6
    for others in made[1:]:
        for key, (image, noise) in others.items():
            assert torch.equal(noise, reference[key][1])
            assert difference(image, reference[key][0]) <= 1
    images = [image for image, _ in reference.values()]
    assert all(difference(images[0], image) > 1 for image in images[1:])


def test_initial_noise_is_that_of_the_seed(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder(pipeline, monkeypatch)
    pipeline.generate("a", seed=7, num_images=3, scheduler="ddim", guidance_scale=1.0)
    expected = torch.cat([torch.randn(1, 4, 8, 8, generator=g) for g in image_generators([7, 8, 9])])
    assert torch.equal(recorder.first[0], expected)


def test_given_latents_replace_the_seeds(pipeline: Pipeline) -> None:
    noise = normal_per_image(image_generators([7, 8]), (4, 8, 8))
    expected = pipeline.generate("a", seed=7, num_images=2, scheduler="ddim")
    given = pipeline.generate("a", seed=0, num_images=2, scheduler="ddim", latents=noise)
    assert torch.equal(given.latents, expected.latents)


def test_size_of_given_latents(pipeline: Pipeline) -> None:
    made = pipeline.generate("a", latents=torch.randn(1, 4, 6, 10))
    assert made.images[0].size == (20, 12)
    with pytest.raises(
        UserError, match=r"latents have shape \[1, 4, 6, 10\]: here it must be \[1, 4, 8, 10\]"
    ):
        pipeline.generate("a", latents=torch.randn(1, 4, 6, 10), height=16)


def test_a_guidance_scale_of_one_makes_one_row_an_image(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Recorder(pipeline, monkeypatch)
    pipeline.generate("a", num_images=3, guidance_scale=1.0, num_inference_steps=2)
    pipeline.generate("a", num_images=3, guidance_scale=1.5, num_inference_steps=2)
    assert [len(latents) for latents in recorder.first] == [3, 6]
    assert recorder.num_calls == 4


def test_steps_are_counted_over_all_batches(pipeline: Pipeline) -> None:
    seen: list[tuple[int, int, int, int]] = []

    def on_step(done: int, total: int, step: Step, latents: Tensor) -> None:
        seen.append((done, total, step.index, len(latents)))

    pipeline.generate(
        "a", num_images=3, batch_size=2, num_inference_steps=2, scheduler="heun", on_step=on_step
    )
    assert seen == [(1, 4, 0, 2), (2, 4, 1, 2), (3, 4, 0, 1), (4, 4, 1, 1)]


def test_the_last_step_shows_the_final_latents(pipeline: Pipeline) -> None:
    shown: list[Tensor] = []
    made = pipeline.generate("a", on_step=lambda done, total, step, latents: shown.append(latents))
    assert torch.equal(shown[-1], made.latents)
    assert made.latents.shape == (1, 4, 8, 8)


def test_settings_make_the_same_image_again(pipeline: Pipeline) -> None:
    made = pipeline.generate(
        ["a red apple", "x"],
        negative_prompt="blue",
        seed=3,
        num_images=2,
        num_inference_steps=3,
        guidance_scale=4,
        guidance_rescale=0.5,
        scheduler="euler",
        karras=True,
        height=20,
        width=12,
    )
    settings = json.loads(json.dumps(made.settings))
    assert [(s["prompt"], s["seed"]) for s in settings] == [
        ("a red apple", 3),
        ("a red apple", 4),
        ("x", 3),
        ("x", 4),
    ]
    again = {key: value for key, value in settings[3].items() if key not in INFORMATION}
    image = pipeline.generate(again.pop("prompt"), **again).images[0]
    assert image.size == (12, 20)
    assert difference(image, made.images[3]) <= 1


INFORMATION = {
    "record_version", "model_id", "weights_hash", "model_parts", "engine", "dtype", "versions", "ldm_version",
}  # fmt: skip


def test_settings_name_the_model_without_its_path(pipeline: Pipeline, tmp_path: Path) -> None:
    pipeline.save(tmp_path / "my-model")
    loaded = load_pipeline(tmp_path / "my-model", device="cpu")
    settings = loaded.generate("a").settings[0]
    assert str(tmp_path) not in json.dumps(settings)
    assert settings["model_id"] == "my-model"
    assert len(settings["weights_hash"]) == 64
    assert (settings["engine"], settings["dtype"]) == ("torch", "float32")
    assert settings["ldm_version"] == ldm.__version__
    assert settings["versions"]["torch"] == torch.__version__
    assert pipeline.generate("a").settings[0]["weights_hash"] is None


def test_settings_left_open_come_from_the_model(pipeline: Pipeline) -> None:
    settings = pipeline.generate("a").settings[0]
    defaults = pipeline.defaults
    for key in ("height", "width", "num_inference_steps", "guidance_scale", "guidance_rescale", "scheduler"):
        assert settings[key] == getattr(defaults, key)
    assert pipeline.generate("a", guidance_scale=0.0).settings[0]["guidance_scale"] == 0.0


def test_low_memory_makes_the_same_images(pipeline: Pipeline) -> None:
    expected = pipeline.generate("a", num_images=2)
    try:
        pipeline.low_memory = True
        made = pipeline.generate("a", num_images=2)
    finally:
        pipeline.low_memory = False
    assert torch.equal(made.latents, expected.latents)
    assert difference(made.images[1], expected.images[1]) <= 1


def ours(caught: pytest.WarningsRecorder) -> list[warnings.WarningMessage]:
    """Without numpy's warnings about diffusers' schedulers."""
    return [warning for warning in caught if warning.category is LdmWarning]


def test_long_prompt_warns_with_the_words_left_out(pipeline: Pipeline) -> None:
    prompt = "a " * 14 + "Red apple"
    with pytest.warns(LdmWarning, match="left out: 'Red apple'") as caught:
        pipeline.generate([prompt, prompt, "a"])
    assert [warning.filename for warning in ours(caught)] == [__file__]
    with pytest.warns(LdmWarning, match="left out: 'Red apple'"):
        pipeline.generate("a", negative_prompt=prompt)


def test_odd_sizes_are_rounded_with_a_warning(pipeline: Pipeline) -> None:
    with pytest.warns(LdmWarning) as caught:
        made = pipeline.generate("a", height=13, width=1)
    assert made.images[0].size == (2, 14)
    assert (made.settings[0]["height"], made.settings[0]["width"]) == (14, 2)
    said = [str(warning.message) for warning in ours(caught)]
    assert said[0] == "height 13 is rounded to 14: this model makes multiples of 2 pixels"
    assert said[1].startswith("width 1 is rounded to 2")
    assert {warning.filename for warning in ours(caught)} == {__file__}


def test_fitting_sizes_and_prompts_give_no_warning(pipeline: Pipeline) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", LdmWarning)
        assert pipeline.generate("", height=18, width=22).images[0].size == (22, 18)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prompts": []}, "no prompt"),
        ({"num_images": 0}, "num_images is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**63 - 1, "num_images": 2}, "seed is 9223372036854775807"),
        ({"height": 0}, "height is 0"),
        ({"width": -8}, "width is -8"),
        ({"num_inference_steps": 0}, "num_inference_steps is 0"),
        ({"num_inference_steps": 1001}, "num_inference_steps is 1001: it must be 1 to 1000"),
        ({"guidance_scale": float("nan")}, "guidance_scale is nan"),
        ({"guidance_rescale": 1.5}, "guidance_rescale is 1.5"),
        ({"scheduler": "dpmpp_2mm"}, "unknown scheduler 'dpmpp_2mm': did you mean 'dpmpp_2m'"),
        ({"scheduler": "ddim", "karras": True}, "no Karras spacing"),
        ({"latents": torch.zeros(2, 4, 8, 8)}, r"latents have shape \[2, 4, 8, 8\]: here it must be \[1, 4"),
    ],
)
def test_values_out_of_range_are_refused(pipeline: Pipeline, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        pipeline.generate(**{"prompts": "a", **settings})


def test_the_largest_seed_works(pipeline: Pipeline) -> None:
    assert pipeline.generate("a", seed=2**63 - 1, num_inference_steps=1).settings[0]["seed"] == 2**63 - 1


def test_a_broken_model_is_an_error_and_not_a_black_image(tmp_path: Path) -> None:
    broken = Pipeline(make_sd2(tmp_path))
    broken.denoiser.unet.conv_out.bias.fill_(float("nan"))
    with pytest.raises(UserError, match="'dpmpp_2m' and 4 steps gave NaN"):
        broken.generate("a")


def test_half_precision_makes_an_image_close_to_full_precision(pipeline: Pipeline, tmp_path: Path) -> None:
    pipeline.save(tmp_path / "m")
    half = load_pipeline(tmp_path / "m", device="cpu", dtype="bfloat16")
    assert half.denoiser.unet.dtype == half.text_encoder.model.dtype == torch.bfloat16
    assert half.autoencoder.vae.dtype == torch.float32
    made, full = half.generate("a", seed=1), pipeline.generate("a", seed=1)
    assert made.settings[0]["dtype"] == "bfloat16"
    assert made.latents.dtype == torch.float32
    assert 0 < difference(made.images[0], full.images[0]) < 60


def test_unknown_dtype_and_device_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown dtype 'float8'"):
        load_pipeline(tmp_path, dtype="float8")
    with pytest.raises(UserError, match="device 'warp' cannot be used"):
        pick_device("warp")
    assert pick_device("cpu") == torch.device("cpu")


def test_the_package_offers_its_names_and_imports_them_late() -> None:
    assert ldm.Generation is Generation
    with pytest.raises(AttributeError, match="no attribute 'pipelines'"):
        _ = ldm.pipelines  # type: ignore[attr-defined]
    code = "import ldm, sys; assert ldm.__version__; print([m for m in ('torch', 'diffusers') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_saved_images_contain_their_settings_and_none_is_overwritten(
    pipeline: Pipeline, tmp_path: Path
) -> None:
    made = pipeline.generate(["a", "b"], seed=3, num_inference_steps=1)
    paths = made.save(tmp_path / "pictures")
    assert [path.name for path in paths] == ["0001-a-s3.png", "0002-b-s3.png"]
    for path, image, settings in zip(paths, made.images, made.settings, strict=True):
        assert read_settings(path) == settings
        assert difference(Image.open(path), image) == 0
    paths[0].unlink()
    with pytest.raises(UserError, match=r"0002-b-s3\.png exists already"):
        made.save(tmp_path / "pictures")
    assert not paths[0].exists()


def test_none_means_not_given_for_every_argument(pipeline: Pipeline) -> None:
    names = [
        name for name in inspect.signature(Pipeline.generate).parameters if name not in ("self", "prompts")
    ]
    assert {"negative_prompt", "seeds", "batch_size", "settings", "latents", "karras"} <= set(names)
    none: dict[str, Any] = dict.fromkeys(names)
    expected = pipeline.generate("a red apple")
    assert torch.equal(pipeline.generate("a red apple", **none).latents, expected.latents)
    settings = GenerationSettings(negative_prompt=None, seed=None)  # type: ignore[arg-type]
    assert torch.equal(pipeline.generate("a red apple", settings=settings).latents, expected.latents)
    arguments = [name for name in inspect.signature(load_pipeline).parameters if name != "device"]
    assert load_pipeline(device="cpu", **dict.fromkeys(arguments)).model_id == "emoji"
    assert Pipeline(pipeline.parts, model_id=None, loras=None).model_id == "unsaved"
    for prompts, message in (
        (None, "prompts is None: give a text"),
        ([None], "one of prompts is None: give texts only"),
        ([], "no prompt"),
    ):
        with pytest.raises(UserError, match=message):
            pipeline.generate(prompts)  # type: ignore[arg-type]

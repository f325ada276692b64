"""A base model and a refiner that share the sampling, against diffusers' two pipelines, and what is refused."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionXLImg2ImgPipeline, StableDiffusionXLPipeline
from PIL import Image

from ldm.errors import LdmWarning, UserError
from ldm.models.loading.model import ModelParts, save_parts
from ldm.noise import image_generators
from ldm.pipeline.pipeline import Pipeline, load_pipeline
from ldm.pipeline.record import read_record
from ldm.pipeline.refiner import Refiner, check_refines
from tests.support.slow_cases import rest_slow
from tests.support.tiny_controls import hints, make_controlnet
from tests.support.tiny_images import SEED, box_mask, largest, photo, stock_scheduler
from tests.support.tiny_models import make_refiner, make_sd1, make_sdxl

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept context:DeprecationWarning"),
]

SCHEDULERS = ["euler", "euler_a", "ddim", "ddpm", "dpmpp_2m", "unipc", "lms", "deis", "pndm"]
PROMPTS = [
    "a red apple on a table",
    "the large blue square above a small green circle",
    "a small blue apple",
]
STEPS: dict[str, Any] = {"num_inference_steps": 5, "guidance_scale": 5.0}
PLAIN: dict[str, Any] = {"num_inference_steps": 4, "scheduler": "euler", "seed": 3, "progress": False}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[ModelParts, ModelParts]:
    made = tmp_path_factory.mktemp("tokenizers")
    base = make_sdxl(made / "base")
    return base, replace(make_refiner(made / "refiner"), autoencoder=base.autoencoder)


def both(models: tuple[ModelParts, ModelParts]) -> Pipeline:
    base, refiner = models
    pipeline = Pipeline(base)
    pipeline.refiner = Refiner(refiner, "0" * 64)
    return pipeline


def stock(parts: ModelParts, kind: Any, scheduler: str, **settings: Any) -> Any:
    networks = {"text_encoder": None, "tokenizer": None, **parts.components()}
    own = stock_scheduler(scheduler, parts.scheduler_config)
    made = kind(**networks, scheduler=own, add_watermarker=False, **settings)
    made.set_progress_bar_config(disable=True)
    return made


def their_images(
    models: tuple[ModelParts, ModelParts],
    scheduler: str,
    prompts: list[str],
    share: float,
    told: dict[str, Any],
    **given: Any,
) -> list[Image.Image]:
    """With the same generators for both pipelines: the second draws what the first has left."""
    base = stock(models[0], StableDiffusionXLPipeline, scheduler)
    refiner = stock(models[1], StableDiffusionXLImg2ImgPipeline, scheduler, requires_aesthetics_score=True)
    common = {"generator": image_generators([SEED] * len(prompts)), **STEPS, **given}
    latents = base(prompts, height=16, width=16, denoising_end=share, output_type="latent", **common).images
    made: list[Image.Image] = refiner(prompts, image=latents, denoising_start=share, **common, **told).images
    return made


@pytest.mark.parametrize("scheduler", rest_slow(SCHEDULERS, "euler", "euler_a", "dpmpp_2m"))
@pytest.mark.parametrize("num_images", [1, 3])
def test_images_equal_those_of_two_pipelines(
    models: tuple[ModelParts, ModelParts], scheduler: str, num_images: int
) -> None:
    prompts = PROMPTS[:num_images]
    told = {"aesthetic_score": 8.0, "negative_aesthetic_score": 1.0}
    ours = both(models).generate(
        prompts, seeds=[SEED] * num_images, scheduler=scheduler, denoising_end=0.6, **told, **STEPS
    )
    theirs = their_images(models, scheduler, prompts, 0.6, told)
    assert largest(ours.images, theirs) <= 1
    alone = Pipeline(models[0]).generate(prompts, seeds=[SEED] * num_images, scheduler=scheduler, **STEPS)
    assert largest(ours.images, alone.images) > 1


def test_prompts_and_scores_of_both_sides(models: tuple[ModelParts, ModelParts]) -> None:
    """A refiner reads the first prompt, as in diffusers, and is told a score beside each prompt."""
    prompts = {"prompt_2": "a table", "negative_prompt": "blue", "negative_prompt_2": "red"}
    seen = []
    for told in ({}, {"aesthetic_score": 1.0}, {"negative_aesthetic_score": 9.0}):
        ours = both(models).generate(
            PROMPTS[0], seed=SEED, scheduler="euler", denoising_end=0.3, **prompts, **told, **STEPS
        )
        theirs = their_images(models, "euler", PROMPTS[:1], 0.3, told, **prompts)
        assert largest(ours.images, theirs) <= 1
        seen.append(ours.latents)
    assert not torch.equal(seen[0], seen[1]) and not torch.equal(seen[0], seen[2])


@pytest.mark.parametrize("scheduler", ["euler", "euler_a", "ddim", "heun"])
def test_a_model_that_refines_itself_changes_nothing(
    models: tuple[ModelParts, ModelParts], scheduler: str
) -> None:
    """Of samplers that remember nothing between steps; the steps of two calls are not cut in two."""
    base, _ = models
    used = {**PLAIN, "scheduler": scheduler}
    steps: list[tuple[int, int]] = []
    whole = Pipeline(base).generate(PROMPTS, **used).latents
    shared = both((base, base)).generate(
        PROMPTS, **used, denoising_end=0.5, on_step=lambda done, total, *_: steps.append((done, total))
    )
    assert torch.equal(shared.latents, whole)  # type: ignore[arg-type]
    assert steps == [(number, 4) for number in range(1, 5)]


def test_images_given_stay_where_the_mask_is_black(models: tuple[ModelParts, ModelParts]) -> None:
    """The second model, too, puts back the part of the image that is known."""
    base, _ = models
    image, mask = photo(seed=1), box_mask((16, 16), (4, 6, 11, 15))
    given: dict[str, Any] = {**PLAIN, "image": image, "mask": mask, "strength": 0.9, "num_inference_steps": 6}
    whole = Pipeline(base).generate(PROMPTS[0], **given).latents
    shared = both((base, base)).generate(PROMPTS[0], **given, denoising_end=0.6).latents
    assert torch.equal(shared, whole)  # type: ignore[arg-type]
    refined = both(models).generate(PROMPTS[0], **given, denoising_end=0.6)
    assert refined.records[0].task == "blended-inpaint" and not torch.equal(refined.latents, whole)  # type: ignore[arg-type]


def test_control_images_control_the_first_model(
    models: tuple[ModelParts, ModelParts], tmp_path: Path
) -> None:
    from ldm.models.control.networks import ControlNetwork

    base = make_sdxl(tmp_path)
    base.controls["depth"] = ControlNetwork("depth", "net", "0" * 64, make_controlnet(base))
    pipeline = both((base, models[1]))
    plain = pipeline.generate(PROMPTS[0], **PLAIN)
    controlled = pipeline.generate(PROMPTS[0], control={"depth": hints()[0]}, **PLAIN)
    assert largest(plain.images, controlled.images) > 1


def test_it_is_a_setting_with_a_record(tmp_path: Path, models: tuple[ModelParts, ModelParts]) -> None:
    for parts, name in zip(models, ("base", "refiner"), strict=True):
        save_parts(parts, tmp_path / name)
    pipeline = load_pipeline(tmp_path / "base", refiner=tmp_path / "refiner", device="cpu")
    made = pipeline.generate(PROMPTS[0], **PLAIN, denoising_end=0.5, aesthetic_score=7.0)
    (path,) = made.save(tmp_path / "images")
    record = read_record(path)
    assert pipeline.refiner is not None
    assert record.refiner_hash == pipeline.refiner.weights_hash
    assert record.record_version == 3
    assert (record.settings.denoising_end, record.settings.aesthetic_score) == (0.5, 7.0)
    assert "denoising_end" not in Pipeline(models[0]).generate("a", **PLAIN).records[0].to_json()


def refuse(message: str, make: Callable[[], Any]) -> None:
    with pytest.raises(UserError, match=message):
        make()


def test_wrong_combinations_are_refused(tmp_path: Path, models: tuple[ModelParts, ModelParts]) -> None:
    pipeline = both(models)
    refuse(
        "denoising_end has no effect without --refiner",
        lambda: Pipeline(models[0]).generate("a", denoising_end=0.5),
    )
    for share, who in ((0.0, "model"), (1.0, "refiner"), (0.1, None)):
        if who is None:
            pipeline.generate("a", **PLAIN, denoising_end=share)
        else:
            refuse(
                f"leaves the {who} no step",
                lambda share=share: pipeline.generate("a", **PLAIN, denoising_end=share),
            )
    refuse(
        "leaves the model no step",
        lambda: pipeline.generate("a", **PLAIN, image=photo(), strength=0.25, denoising_end=0.5),
    )
    refuse("nothing guides the refiner", lambda: pipeline.generate("a", **PLAIN, guidance="autoguidance"))
    other = replace(models[1], scheduler_config={**models[1].scheduler_config, "beta_end": 0.02})
    refuse("same noise schedule", lambda: both((models[0], other)).generate("a", **PLAIN, denoising_end=0.5))
    sd1 = make_sd1(tmp_path / "sd1")
    save_parts(sd1, tmp_path / "model")
    save_parts(models[0], tmp_path / "base")
    refuse(
        "Stable Diffusion 1, for which there are no refiners",
        lambda: load_pipeline(tmp_path / "model", refiner=tmp_path / "base"),
    )
    refuse(
        "Stable Diffusion 1, which cannot refine images of base",
        lambda: load_pipeline(tmp_path / "base", refiner=tmp_path / "model"),
    )
    refuse("inpaint", lambda: check_refines("r", replace(models[1], task="inpaint"), models[0], "base"))
    scaled = make_refiner(tmp_path / "scaled")
    scaled.autoencoder.vae.register_to_config(scaling_factor=0.5)
    refuse(
        "another latent space: .* scaling_factor 0.5", lambda: check_refines("r", scaled, models[0], "base")
    )


def test_a_refiner_that_was_not_asked_for_is_said(
    tmp_path: Path, models: tuple[ModelParts, ModelParts]
) -> None:
    from ldm.generation.model_options import ModelOptions, load_model
    from ldm.generation.reproduce import read_original

    for parts, name in zip(models, ("base", "refiner"), strict=True):
        save_parts(parts, tmp_path / name)
    base, refiner = str(tmp_path / "base"), str(tmp_path / "refiner")
    used = load_model(ModelOptions(base, refiner=refiner), None)
    (refined,) = used.generate("a", **PLAIN).save(tmp_path / "refined")
    refuse(
        "was made with a refiner .*--refiner", lambda: load_model(ModelOptions(base), read_original(refined))
    )
    load_model(ModelOptions(base, refiner=refiner), read_original(refined))
    (plain,) = load_model(ModelOptions(base), None).generate("a", **PLAIN).save(tmp_path / "plain")
    with pytest.warns(LdmWarning, match="was made without a refiner"):
        load_model(ModelOptions(base, refiner=refiner), read_original(plain))
    with pytest.warns(LdmWarning, match="with another refiner"):
        load_model(ModelOptions(base, refiner=base), read_original(refined))

"""A model's own scheduler config is what runs: as in the stock pipeline, for every config that diffusers writes."""

import inspect
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from diffusers.configuration_utils import FrozenDict

from ldm.diffusion.scheduler_names import OWN_SCHEDULER, SCHEDULERS
from ldm.diffusion.schedulers import (
    adds_noise,
    make_scheduler,
    resolve_scheduler,
    scheduler_class,
    training_path,
)
from ldm.errors import LdmWarning, UserError
from ldm.export.verify.readers import trial_outputs as read_trial
from ldm.export.verify.trial import largest_difference, trial_for, trial_inputs, trial_outputs
from ldm.io.files import write_tensors
from ldm.models.parts import default_size
from ldm.models.unet import UNetDenoiser
from ldm.noise import image_generators, normal_per_image
from ldm.pipeline.pipeline import Pipeline
from tests.support.tiny_models import SD1_SCHEDULER, make_sd1

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),  # the stock pipeline says what it corrects
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept context:DeprecationWarning"),
    pytest.mark.filterwarnings(
        "ignore:Should have t[ab][<>]=t[01] but got:UserWarning"
    ),  # torchsde's rounding
]

CLASSES = sorted({entry.class_name for entry in SCHEDULERS.values() if entry.available})
BETAS = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 100,  # KDPM2 takes a second to set up for 1000
}
SEED = 3

ASKED: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in CLASSES),
    ("DDIMScheduler", {"clip_sample": True, "steps_offset": 0}),
    ("DDIMScheduler", {"set_alpha_to_one": True, "timestep_spacing": "trailing"}),
    ("DDIMScheduler", {"thresholding": True}),
    ("DDPMScheduler", {"clip_sample": True, "variance_type": "fixed_large"}),
    ("PNDMScheduler", {"skip_prk_steps": False}),
    ("PNDMScheduler", {"skip_prk_steps": True, "steps_offset": 0}),
    ("LMSDiscreteScheduler", {"use_karras_sigmas": True}),
    ("EulerDiscreteScheduler", {"use_karras_sigmas": True, "timestep_spacing": "leading"}),
    ("EulerDiscreteScheduler", {"use_exponential_sigmas": True, "final_sigmas_type": "sigma_min"}),
    ("EulerDiscreteScheduler", {"use_beta_sigmas": True}),
    ("EulerDiscreteScheduler", {"interpolation_type": "log_linear"}),
    ("EulerAncestralDiscreteScheduler", {"timestep_spacing": "trailing"}),
    ("HeunDiscreteScheduler", {"use_karras_sigmas": True, "clip_sample": True}),
    ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    ("DPMSolverMultistepScheduler", {"use_lu_lambdas": True}),
    ("DPMSolverMultistepScheduler", {"use_beta_sigmas": True, "euler_at_final": True}),
    ("DPMSolverMultistepScheduler", {"solver_order": 3, "lower_order_final": False}),
    ("DPMSolverMultistepScheduler", {"solver_type": "heun", "algorithm_type": "sde-dpmsolver++"}),
    ("DPMSolverSinglestepScheduler", {"solver_order": 3, "lower_order_final": True}),
    ("UniPCMultistepScheduler", {"solver_order": 3, "use_karras_sigmas": True}),
    ("UniPCMultistepScheduler", {"solver_type": "bh1", "final_sigmas_type": "sigma_min"}),
    ("DEISMultistepScheduler", {"use_exponential_sigmas": True, "lower_order_final": False}),
    ("SASolverScheduler", {"predictor_order": 3, "use_karras_sigmas": True}),
]
"""The config that diffusers writes for each class, and what else configs ask for."""


def written(class_name: str, changes: dict[str, Any]) -> dict[str, Any]:
    """What `save_pretrained` of a scheduler writes: every setting, those at their defaults too."""
    scheduler = scheduler_class(class_name)(**{**BETAS, **changes})
    values = {key: value for key, value in scheduler.config.items() if key != "_use_default_values"}
    return {"_class_name": class_name, **values}


def stock(pipeline: Pipeline, scheduler: Any) -> Any:
    """diffusers' own pipeline around the same networks, with its corrections."""
    parts = pipeline.parts
    made = StableDiffusionPipeline(
        vae=parts.autoencoder.vae,
        text_encoder=parts.text_encoder.model,
        tokenizer=parts.text_encoder.tokenizer,
        unet=parts.denoiser.unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """With a UNet of one level: here the schedulers matter, which are given its predictions."""
    parts = make_sd1(tmp_path_factory.mktemp("sd1"))
    unet = UNet2DConditionModel(
        sample_size=8,
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",),
        mid_block_type=None,
        block_out_channels=(16,),
        layers_per_block=1,
        norm_num_groups=8,
        cross_attention_dim=32,
        attention_head_dim=2,
    )
    unet.conv_out.weight.data *= 4  # what it predicts depends on what it is given, as in a trained one
    parts.denoiser = UNetDenoiser(unet.eval().requires_grad_(False))
    parts.defaults = parts.defaults.over(type(parts.defaults)(scheduler=OWN_SCHEDULER))
    return Pipeline(parts)


def latents_of(
    pipeline: Pipeline, config: dict[str, Any], num_steps: int = 6, **settings: Any
) -> torch.Tensor:
    """The final latents of our pipeline with this scheduler config."""
    pipeline.parts.scheduler_config = config
    noise = normal_per_image(image_generators([1]), (4, 8, 8))
    made = pipeline.generate(
        "a red apple",
        num_inference_steps=num_steps,
        guidance_scale=3.0,
        latents=noise,
        seeds=[SEED],
        **settings,
    )
    return made.latents


def stock_latents(pipeline: Pipeline, scheduler: Any, num_steps: int = 6) -> torch.Tensor:
    if hasattr(scheduler, "noise_sampler_seed"):
        scheduler.noise_sampler_seed = [SEED]
    noise = normal_per_image(image_generators([1]), (4, 8, 8))
    made = stock(pipeline, scheduler)(
        "a red apple", num_inference_steps=num_steps, guidance_scale=3.0, latents=noise, height=16, width=16,
        generator=image_generators([SEED]), output_type="latent",
    )  # fmt: skip
    latents: torch.Tensor = made.images
    return latents


@pytest.mark.parametrize(("class_name", "changes"), ASKED, ids=[f"{name}-{each}" for name, each in ASKED])
def test_the_models_own_scheduler_is_that_of_the_stock_pipeline(
    pipeline: Pipeline, class_name: str, changes: dict[str, Any]
) -> None:
    config = written(class_name, changes)
    theirs = stock_latents(pipeline, scheduler_class(class_name).from_config(config))
    ours = latents_of(pipeline, config)
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3 * float(theirs.std()))


@pytest.mark.parametrize("class_name", CLASSES)
def test_every_sampler_has_the_settings_that_the_stock_pipeline_would_give_it(class_name: str) -> None:
    """A user of diffusers replaces a scheduler by `from_config` of its config; the pipeline then corrects it."""
    config = written(class_name, {})
    own = _corrected(scheduler_class(class_name).from_config(config))
    for name, entry in SCHEDULERS.items():
        if not entry.available:
            continue
        theirs = _corrected(scheduler_class(entry.class_name).from_config({**own.config, **entry.overrides}))
        ours = make_scheduler(name, config)
        known = set(inspect.signature(type(theirs).__init__).parameters) - {"self"}
        assert {key: ours.config[key] for key in known} == {key: theirs.config[key] for key in known}, name


def _corrected(scheduler: Any, unet: Any = None) -> Any:
    """What the stock pipeline makes of a scheduler, and of the UNet's configuration, which it changes in place."""
    none = dict.fromkeys(("vae", "text_encoder", "tokenizer", "safety_checker", "feature_extractor"))
    made = StableDiffusionPipeline(**none, unet=unet, scheduler=scheduler, requires_safety_checker=False)
    return made.scheduler


def test_a_config_that_leaves_out_what_is_usual_is_not_clipped(pipeline: Pipeline) -> None:
    """A fresh PNDM or Euler config has no clip_sample, and DDIM's own default is to clip."""
    for class_name in ("PNDMScheduler", "EulerDiscreteScheduler"):
        config = written(class_name, {})
        assert "clip_sample" not in config
        expected = latents_of(pipeline, {**config, "clip_sample": False, "steps_offset": 1}, scheduler="ddim")
        assert torch.equal(latents_of(pipeline, config, scheduler="ddim"), expected)


def test_the_betas_that_a_file_leaves_out_are_those_of_its_own_class() -> None:
    config = {"_class_name": "HeunDiscreteScheduler"}  # its defaults are not those of other classes
    own = scheduler_class("HeunDiscreteScheduler")()
    for name in ("ddim", "dpmpp_2m", "heun", OWN_SCHEDULER):
        torch.testing.assert_close(make_scheduler(name, config).alphas_cumprod, own.alphas_cumprod)
    assert (training_path(config, "m").beta_start, training_path(config, "m").beta_end) == (0.00085, 0.012)


@pytest.mark.parametrize(
    ("class_name", "changes", "resolved"),
    [
        ("PNDMScheduler", {"skip_prk_steps": True}, ("pndm", False)),
        ("EulerDiscreteScheduler", {}, ("euler", False)),
        ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}, ("dpmpp_2m", True)),
        ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}, ("dpmpp_2m_sde", False)),
        ("DPMSolverMultistepScheduler", {"solver_order": 3}, (OWN_SCHEDULER, False)),
        (
            "DPMSolverMultistepScheduler",
            {"solver_order": 3, "use_karras_sigmas": True},
            (OWN_SCHEDULER, True),
        ),
        ("EulerDiscreteScheduler", {"use_beta_sigmas": True}, (OWN_SCHEDULER, False)),
    ],
)
def test_a_record_names_the_sampler_that_ran_and_makes_the_image_again(
    pipeline: Pipeline, class_name: str, changes: dict[str, Any], resolved: tuple[str, bool]
) -> None:
    pipeline.parts.scheduler_config = written(class_name, changes)
    made = pipeline.generate("a red apple", seed=5)
    settings = made.records[0].settings
    assert (settings.scheduler, settings.karras) == resolved
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LdmWarning)
        again = pipeline.generate("a red apple", seed=5, settings=settings)
    assert torch.equal(again.latents, made.latents)


def test_karras_can_be_switched_on_and_off(pipeline: Pipeline) -> None:
    plain, karras = (
        written("DPMSolverMultistepScheduler", {"use_karras_sigmas": on}) for on in (False, True)
    )
    assert torch.equal(latents_of(pipeline, plain, karras=True), latents_of(pipeline, karras))
    assert torch.equal(latents_of(pipeline, karras, karras=False), latents_of(pipeline, plain))
    assert resolve_scheduler("euler", karras, None) == ("euler", False)


def test_a_sampler_by_name_says_what_it_replaces(pipeline: Pipeline) -> None:
    asked = {"use_karras_sigmas": True, "solver_order": 3}
    with pytest.warns(LdmWarning) as said:
        latents_of(pipeline, written("DPMSolverMultistepScheduler", asked), scheduler="dpmpp_2m")
    assert str(said[0].message) == (
        "scheduler 'dpmpp_2m' replaces settings of the model's scheduler config: solver_order 3 by 2, "
        "use_karras_sigmas true by false; --scheduler model keeps them"
    )
    with pytest.warns(LdmWarning, match="'euler' replaces .*: use_karras_sigmas true by false;"):
        latents_of(pipeline, written("DPMSolverMultistepScheduler", asked), scheduler="euler")
    latents_of(pipeline, written("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}), karras=True)


def test_an_own_scheduler_that_cannot_follow_the_model_is_replaced_with_a_warning(pipeline: Pipeline) -> None:
    zero_snr = {**SD1_SCHEDULER, "rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}
    with pytest.warns(
        LdmWarning, match="own PNDMScheduler would ignore the model's zero terminal SNR, so dpmpp_2m"
    ):
        ours = latents_of(pipeline, zero_snr)
    assert torch.equal(ours, latents_of(pipeline, zero_snr, scheduler="dpmpp_2m"))
    with pytest.warns(LdmWarning, match="own TCDScheduler is not supported, so dpmpp_2m is used"):
        assert resolve_scheduler(OWN_SCHEDULER, {"_class_name": "TCDScheduler"}, None) == ("dpmpp_2m", False)


def test_which_samplers_add_noise() -> None:
    assert adds_noise(OWN_SCHEDULER, written("DDPMScheduler", {}))
    assert adds_noise(
        OWN_SCHEDULER, written("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"})
    )
    assert not adds_noise(OWN_SCHEDULER, written("DPMSolverMultistepScheduler", {}))
    assert adds_noise("euler_a", {}) and not adds_noise("ddim", {})


def test_a_number_of_steps_that_a_scheduler_cannot_space_is_refused(pipeline: Pipeline) -> None:
    config = written("PNDMScheduler", {"skip_prk_steps": False})
    with pytest.raises(
        UserError, match="num_inference_steps is 2: this scheduler cannot space its timesteps"
    ):
        latents_of(pipeline, config, num_steps=2)


@pytest.mark.parametrize("version", ["0.8.1", "0.9.0", "0.10.2"])
@pytest.mark.parametrize("sample_size", [8, 32, 64, 96])
def test_the_size_in_old_configs_is_corrected_as_in_the_stock_pipeline(
    pipeline: Pipeline, sample_size: int, version: str
) -> None:
    unet = pipeline.denoiser.unet
    known = unet._internal_dict
    try:
        unet._internal_dict = FrozenDict({**known, "sample_size": sample_size, "_diffusers_version": version})
        ours = default_size(pipeline.denoiser, pipeline.autoencoder)
        _corrected(scheduler_class("DDIMScheduler")(), unet=unet)
        size = unet.config.sample_size * pipeline.autoencoder.pixels_per_latent
    finally:
        unet._internal_dict = known
    assert ours == (size, size)


@pytest.mark.parametrize(
    ("class_name", "changes"),
    [
        ("PNDMScheduler", {}),  # no clip_sample, and DDIM's own default is to clip
        ("EulerDiscreteScheduler", {"steps_offset": 0}),
        ("DDIMScheduler", {"clip_sample": True}),
        ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True, "solver_order": 3}),
        ("EulerAncestralDiscreteScheduler", {}),
        ("PNDMScheduler", {"skip_prk_steps": True, "prediction_type": "v_prediction"}),
    ],
)
def test_export_and_verify_ask_what_a_stock_user_asks(
    pipeline: Pipeline, class_name: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    config = written(class_name, changes)
    pipeline.parts.scheduler_config = config
    trial = trial_for(pipeline.parts)
    write_tensors(tmp_path / "inputs", trial_inputs(pipeline.parts, trial))
    task = {"trial": asdict(trial), "inputs": str(tmp_path / "inputs")}
    theirs = read_trial(stock(pipeline, scheduler_class(class_name).from_config(config)), task)
    assert largest_difference(trial_outputs(pipeline.parts, trial), theirs) <= 1


def test_verify_uses_another_sampler_where_the_models_own_cannot_follow_it(
    pipeline: Pipeline, tmp_path: Path
) -> None:
    config = {**SD1_SCHEDULER, "rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}
    pipeline.parts.scheduler_config = config
    trial = trial_for(pipeline.parts)
    assert trial.scheduler_class == "DDIMScheduler"
    write_tensors(tmp_path / "inputs", trial_inputs(pipeline.parts, trial))
    task = {"trial": asdict(trial), "inputs": str(tmp_path / "inputs")}
    theirs = read_trial(stock(pipeline, scheduler_class("PNDMScheduler").from_config(config)), task)
    assert largest_difference(trial_outputs(pipeline.parts, trial), theirs) <= 1

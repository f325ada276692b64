"""Schedulers by name, guidance, and the denoising loop."""

import dataclasses
import math

import diffusers
import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg
from torch import Tensor

from ldm.diffusion.guidance import guide_with_negative
from ldm.diffusion.sampling import denoise, plan_sampling
from ldm.diffusion.scheduler_names import SCHEDULERS
from ldm.diffusion.schedulers import make_scheduler, schedulers_for
from ldm.errors import UserError
from ldm.types import Conditioning, Step
from tests.support.tiny_models import SD1_SCHEDULER, SD2_SCHEDULER, ZERO_SNR_SCHEDULER

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept context:DeprecationWarning"),
    pytest.mark.filterwarnings(
        "ignore:Should have t[ab][<>]=t[01] but got:UserWarning"
    ),  # torchsde's rounding
]

AVAILABLE = [name for name, entry in SCHEDULERS.items() if entry.available]
IGNORING_ZERO_SNR = ["deis", "dpmpp_2s", "heun", "kdpm2", "kdpm2_a", "lms", "pndm", "sa_solver"]
NO_PROMPT = Conditioning(torch.zeros(1, 1, 1))


def tenth(
    latents: Tensor, timesteps: Tensor, conditioning: Conditioning, *, step: Step | None = None
) -> Tensor:
    """A denoiser that processes each element independently, so that a row cannot depend on the others."""
    return 0.1 * latents


def noise_of(seeds: list[int]) -> Tensor:
    return torch.stack([torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(s)) for s in seeds])


def run(name: str, seeds: list[int], num_inference_steps: int = 3) -> Tensor:
    scheduler = make_scheduler(name, SD1_SCHEDULER)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    steps = denoise(
        tenth,
        plan_sampling(scheduler, num_inference_steps),
        noise_of(seeds),
        NO_PROMPT,
        generators=generators,
    )
    return list(steps)[-1][1]


@pytest.mark.parametrize("name", AVAILABLE)
def test_the_models_path_is_kept(name: str) -> None:
    config = {**SD2_SCHEDULER, "beta_schedule": "linear", "beta_end": 0.02, "num_train_timesteps": 500}
    scheduler = make_scheduler(name, config)
    assert scheduler.config.prediction_type == "v_prediction"
    expected = torch.cumprod(1 - torch.linspace(0.00085, 0.02, 500), dim=0)
    torch.testing.assert_close(scheduler.alphas_cumprod, expected)


def test_a_name_sets_the_sampler_whatever_the_models_config_says() -> None:
    config = {
        **SD1_SCHEDULER,
        "algorithm_type": "sde-dpmsolver++",
        "solver_order": 3,
        "use_karras_sigmas": True,
        "use_exponential_sigmas": False,
    }
    settings = make_scheduler("dpmpp_2m", config).config
    assert (settings.algorithm_type, settings.solver_order) == ("dpmsolver++", 2)
    assert settings.use_karras_sigmas is False
    assert make_scheduler("dpmpp_2m", config, karras=True).config.use_karras_sigmas is True
    assert make_scheduler("pndm", {**config, "skip_prk_steps": False}).config.skip_prk_steps is True


def test_a_name_sets_the_sampler_also_on_the_config_of_a_scheduler_in_memory() -> None:
    config = diffusers.DPMSolverMultistepScheduler(prediction_type="v_prediction").config
    settings = make_scheduler("dpmpp_2m_sde", config, karras=True).config
    assert (settings.algorithm_type, settings.use_karras_sigmas) == ("sde-dpmsolver++", True)
    assert settings.prediction_type == "v_prediction"
    assert make_scheduler("ddim", config).config.timestep_spacing == "leading"  # DDIM's own default


def test_predictions_are_never_clipped_as_in_the_stock_pipeline() -> None:
    silent = {key: value for key, value in SD1_SCHEDULER.items() if key != "clip_sample"}
    assert make_scheduler("ddim", silent).config.clip_sample is False
    assert make_scheduler("ddim", {**silent, "clip_sample": True}).config.clip_sample is False


def test_karras_spacing_follows_its_equation() -> None:
    scheduler = make_scheduler("euler", {**SD1_SCHEDULER, "timestep_spacing": "linspace"}, karras=True)
    sigmas = [step.sigma for step in plan_sampling(scheduler, 10).steps]
    first, last = sigmas[0] ** (1 / 7), sigmas[-1] ** (1 / 7)
    expected = [
        (first + i / 9 * (last - first)) ** 7 for i in range(10)
    ]  # Eq. 5 of Karras et al. 2022, rho = 7
    assert sigmas == pytest.approx(expected, rel=1e-4)


def test_unknown_name_gets_the_nearest() -> None:
    with pytest.raises(UserError, match="unknown scheduler 'eular': did you mean 'euler'"):
        make_scheduler("eular", SD1_SCHEDULER)


def test_absent_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = dataclasses.replace(SCHEDULERS["ddim"], requires="no_such_package")
    monkeypatch.setitem(SCHEDULERS, "ddim", entry)
    with pytest.raises(UserError, match="'ddim' needs no_such_package: pip install no_such_package"):
        make_scheduler("ddim", SD1_SCHEDULER)
    assert "ddim" not in schedulers_for(SD1_SCHEDULER)


def test_karras_is_rejected_where_unsupported() -> None:
    with pytest.raises(UserError, match=r"'ddim' has no Karras spacing: use .*euler, heun"):
        make_scheduler("ddim", SD1_SCHEDULER, karras=True)


@pytest.mark.parametrize("name", IGNORING_ZERO_SNR)
def test_zero_snr_rejects_samplers_that_ignore_it(name: str) -> None:
    with pytest.raises(UserError, match=r"would ignore.*use ddpm, ddim, euler, euler_a, dpmpp_2m") as caught:
        make_scheduler(name, ZERO_SNR_SCHEDULER)
    assert name not in str(caught.value).split(": ", 1)[1].split(", ")
    # They do ignore it: used directly, diffusers' path ends with some signal left.
    ignoring = getattr(diffusers, SCHEDULERS[name].class_name).from_config(ZERO_SNR_SCHEDULER)
    assert ignoring.alphas_cumprod[-1] > 1e-3


def test_zero_snr_accepts_all_other_samplers() -> None:
    names = sorted(set(AVAILABLE) - set(IGNORING_ZERO_SNR))
    assert sorted(schedulers_for(ZERO_SNR_SCHEDULER)) == names
    for name in names:
        scheduler = make_scheduler(name, ZERO_SNR_SCHEDULER)
        assert plan_sampling(scheduler, 5).steps[0].timestep == 999
        assert scheduler.alphas_cumprod[-1] < 1e-7


def test_zero_snr_with_epsilon_is_refused() -> None:
    with pytest.raises(UserError, match="rescale_betas_zero_snr with prediction_type epsilon"):
        make_scheduler("ddim", {**ZERO_SNR_SCHEDULER, "prediction_type": "epsilon"})


@pytest.mark.parametrize("name", ["euler_a", "heun", "kdpm2", "kdpm2_a", "pndm"])
def test_sample_prediction_is_refused_where_diffusers_lacks_it(name: str) -> None:
    with pytest.raises(
        UserError, match="does not support models with prediction type sample: use ddpm, ddim, euler, dpm"
    ):
        make_scheduler(name, {**SD1_SCHEDULER, "prediction_type": "sample"})


def test_foreign_prediction_type_is_refused() -> None:
    with pytest.raises(UserError, match="prediction_type 'flow_prediction'"):
        make_scheduler("euler", {**SD1_SCHEDULER, "prediction_type": "flow_prediction"})


@pytest.mark.parametrize("num_inference_steps", [1, 2, 3, 7])
@pytest.mark.parametrize("name", AVAILABLE)
def test_each_step_is_yielded_once(name: str, num_inference_steps: int) -> None:
    seen: list[Step] = []

    def denoiser(
        latents: Tensor, timesteps: Tensor, conditioning: Conditioning, *, step: Step | None = None
    ) -> Tensor:
        assert step is not None and timesteps.tolist() == pytest.approx([step.timestep] * 2)
        seen.append(step)
        return 0.1 * latents

    scheduler = make_scheduler(name, SD1_SCHEDULER)
    generators = [torch.Generator().manual_seed(i) for i in range(2)]
    yielded = list(
        denoise(
            denoiser,
            plan_sampling(scheduler, num_inference_steps),
            noise_of([0, 1]),
            NO_PROMPT,
            generators=generators,
        )
    )
    assert [step.index for step, _ in yielded] == list(range(num_inference_steps))
    assert [step.evaluation for step in seen] == list(range(len(seen)))
    assert tuple(seen) == plan_sampling(scheduler, num_inference_steps).steps
    assert all(latents.isfinite().all() and latents.shape == (2, 4, 8, 8) for _, latents in yielded)
    assert all(type(value) in (int, float) for step in seen for value in dataclasses.astuple(step))


@pytest.mark.parametrize(("name", "num_calls"), [("ddim", 5), ("heun", 9), ("kdpm2", 9), ("pndm", 6)])
def test_denoiser_calls_of_five_steps(name: str, num_calls: int) -> None:
    assert len(plan_sampling(make_scheduler(name, SD1_SCHEDULER), 5).steps) == num_calls


def test_step_contains_the_noise_level() -> None:
    step = plan_sampling(make_scheduler("ddim", SD1_SCHEDULER), 4).steps[0]
    level = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2, dim=0)[751]
    assert step.timestep == 751
    assert step.sigma == pytest.approx(math.sqrt((1 - level) / level), rel=1e-5)


@pytest.mark.parametrize("name", [name for name in AVAILABLE if SCHEDULERS[name].stochastic])
def test_each_image_has_independent_noise(name: str) -> None:
    together = run(name, [3, 4, 5])
    assert torch.equal(run(name, [4])[0], together[1])
    assert torch.equal(run(name, [5, 4])[0], together[2])
    assert not torch.equal(run(name, [4], num_inference_steps=4)[0], together[1])


def test_brownian_noise_has_the_images_seeds() -> None:
    pytest.importorskip("torchsde")
    assert torch.equal(run("dpmpp_sde", [4])[0], run("dpmpp_sde", [3, 4])[1])


def test_the_caller_can_stop() -> None:
    steps = denoise(tenth, plan_sampling(make_scheduler("ddim", SD1_SCHEDULER), 50), noise_of([0]), NO_PROMPT)
    assert next(steps)[0].index == 0
    steps.close()


@pytest.mark.parametrize(
    ("num_inference_steps", "spacing"),
    [(0, "leading"), (1001, "leading"), (1000, "leading"), (61, "trailing")],
)
def test_invalid_numbers_of_steps_are_rejected(num_inference_steps: int, spacing: str) -> None:
    # With diffusers' arithmetic, 1000 leading steps start at timestep 1000, and 61 trailing steps end at -1.
    scheduler = make_scheduler("ddim", {**SD1_SCHEDULER, "timestep_spacing": spacing})
    with pytest.raises(UserError, match=f"num_inference_steps is {num_inference_steps}"):
        plan_sampling(scheduler, num_inference_steps)


def embeds(*values: float) -> Conditioning:
    return Conditioning(torch.tensor(values).view(-1, 1, 1))


class TextDenoiser:
    """Returns the latents times the prompt's number, and counts its calls and rows."""

    def __init__(self) -> None:
        self.rows: list[list[float]] = []

    def __call__(
        self, latents: Tensor, timesteps: Tensor, conditioning: Conditioning, *, step: Step | None = None
    ) -> Tensor:
        assert len(latents) == len(timesteps) == len(conditioning)
        self.rows.append(conditioning.prompt_embeds.flatten().tolist())
        return latents * conditioning.prompt_embeds.view(-1, 1, 1, 1)


@pytest.mark.parametrize("negative", [embeds(2.0), embeds(2.0, 2.0)])
def test_guidance_is_one_call_with_the_negative_rows_first(negative: Conditioning) -> None:
    denoiser = TextDenoiser()
    latents = noise_of([0, 1])
    model_pred = guide_with_negative(denoiser, negative, 7.5)(latents, torch.tensor([5, 5]), embeds(3.0, 4.0))
    assert denoiser.rows == [[2.0, 2.0, 3.0, 4.0]]
    torch.testing.assert_close(model_pred[0], latents[0] * (2 + 7.5 * (3 - 2)))
    torch.testing.assert_close(model_pred[1], latents[1] * (2 + 7.5 * (4 - 2)))


@pytest.mark.parametrize("guidance_scale", [1.0, 0.5, 0.0])
def test_without_guidance_the_denoiser_is_returned(guidance_scale: float) -> None:
    denoiser = TextDenoiser()
    assert guide_with_negative(denoiser, embeds(2.0), guidance_scale, 0.7) is denoiser


def test_rescale_equals_diffusers_and_its_equation() -> None:
    def denoiser(
        latents: Tensor, timesteps: Tensor, conditioning: Conditioning, *, step: Step | None = None
    ) -> Tensor:
        return torch.cat([negative, positive])

    negative, positive = noise_of([2, 3]), noise_of([4, 5]) * 2
    arguments = noise_of([0, 1]), torch.tensor([5, 5]), embeds(3.0, 4.0)
    plain = guide_with_negative(denoiser, embeds(1.0), 5.0)(*arguments)
    rescaled = guide_with_negative(denoiser, embeds(1.0), 5.0, 0.7)(*arguments)
    torch.testing.assert_close(rescaled, rescale_noise_cfg(plain, positive, 0.7), rtol=0, atol=0)
    whole = guide_with_negative(denoiser, embeds(1.0), 5.0, 1.0)(*arguments)
    torch.testing.assert_close(whole.std(dim=(1, 2, 3)), positive.std(dim=(1, 2, 3)))
    torch.testing.assert_close(rescaled, 0.7 * whole + 0.3 * plain)

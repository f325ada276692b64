"""The paths besides DDPM's, a rectified flow and EDM's: the objective, the samplers, and their equivalence.

The network is exact: for data x_0 ~ N(MEAN, SPREAD^2) it predicts the mean of the target given x_t. Then
z = (x_t - alpha MEAN) / deviation is constant along the probability-flow ODE, so every sampler's error is known.
"""

import math
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from ldm.diffusion.edm import EDMPath, EDMSettings
from ldm.diffusion.edm_heun import EDMHeunScheduler
from ldm.diffusion.flow import FlowPath, FlowSettings
from ldm.diffusion.objective import (
    MAX_SNR,
    MIN_SNR,
    ObjectiveSettings,
    diffusion_loss,
    loss_weight,
    timestep_at,
)
from ldm.diffusion.path import DDPMPath, ProbabilityPath, ScheduleSettings
from ldm.diffusion.paths import path_of_config, path_of_scheduler
from ldm.diffusion.sampling import denoise, plan_sampling
from ldm.diffusion.scheduler_names import SCHEDULERS
from ldm.diffusion.schedulers import make_scheduler, resolve_scheduler, schedulers_for
from ldm.diffusion.ve import VEPath
from ldm.diffusion.vp import VPPath
from ldm.errors import UserError
from ldm.types import Conditioning, Step

MEAN, SPREAD = 0.4, 0.6
NO_PROMPT = Conditioning(torch.zeros(1, 1, 1))


EDM = EDMSettings(sigma_data=0.5)
PATHS: list[ProbabilityPath] = [FlowPath(), FlowPath(FlowSettings(prediction_type="sample")), EDMPath(EDM)]
DDPM: list[ProbabilityPath] = [
    DDPMPath(ScheduleSettings(prediction_type=each)) for each in ("epsilon", "v_prediction", "sample")
]
SDES: list[ProbabilityPath] = [VPPath(), VEPath()]
NAMES = ["flow", "flow x_0", "edm", "epsilon", "v_prediction", "sample"]
SDE_NAMES = ["vp", "ve"]


class ExactDenoiser:
    """The mean of the target given x_t, for independent Gaussian data."""

    def __init__(self, path: Any, factor: float = 1.0) -> None:
        self.path, self.factor = path, factor

    def __call__(
        self, latents: Tensor, timesteps: Tensor, conditioning: Conditioning, *, step: Step | None = None
    ) -> Tensor:
        at = timesteps.double()
        alpha, sigma = self.path.alpha(at), self.path.sigma(at)
        x_t = latents / self.path.scale_model_input(torch.ones_like(alpha), at)
        x_0 = MEAN + alpha * SPREAD**2 / (alpha**2 * SPREAD**2 + sigma**2) * (x_t - alpha * MEAN)
        output: Tensor = self.path.target(x_0, (x_t - alpha * x_0) / sigma, at)
        return self.factor * output


def sampled(
    scheduler: Any, num_inference_steps: int, noise: Tensor, path: ProbabilityPath | None = None
) -> Tensor:
    """What a sampler makes of noise, with the exact denoiser of its path."""
    plan, path = plan_sampling(scheduler, num_inference_steps), path or path_of_scheduler(scheduler)
    generators = [torch.Generator().manual_seed(row) for row in range(len(noise))]
    (*_, (_, latents)) = denoise(ExactDenoiser(path), plan, noise, NO_PROMPT, generators=generators)
    return latents


def error(scheduler: Any, num_inference_steps: int) -> float:
    """Distance of the sampled latents from the exact solution of the ODE."""
    plan = plan_sampling(scheduler, num_inference_steps)
    noise = torch.randn(1, 4, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    path = path_of_scheduler(scheduler)
    first = torch.tensor([plan.steps[0].timestep], dtype=torch.float64)
    x_t = noise * getattr(plan.prototype, "init_noise_sigma", 1.0)
    alpha, sigma = path.alpha(first), path.sigma(first)
    z = (x_t - alpha * MEAN) / (alpha**2 * SPREAD**2 + sigma**2).sqrt()
    return float((sampled(scheduler, num_inference_steps, noise) - (MEAN + SPREAD * z)).abs().max())


@pytest.mark.parametrize(
    ("name", "path", "order"),
    [
        ("euler", FlowPath(), 1),
        ("euler", FlowPath(FlowSettings(shift=3.0)), 1),
        ("heun", FlowPath(), 2),
        ("euler", EDMPath(EDM), 1),
        ("heun", EDMPath(EDM), 2),
        ("dpmpp_2m", EDMPath(EDM), 2),
    ],
    ids=["flow euler", "flow euler, shifted", "flow heun", "edm euler", "edm heun", "edm dpm++ 2m"],
)
def test_a_sampler_converges_with_its_order(name: str, path: ProbabilityPath, order: int) -> None:
    scheduler = make_scheduler(name, path.scheduler_config())
    coarse, fine = error(scheduler, 40), error(scheduler, 80)
    assert fine < 0.1
    assert math.log2(coarse / fine) == pytest.approx(order, abs=0.35)


@pytest.mark.parametrize("path", PATHS, ids=NAMES[:3])
def test_every_sampler_of_a_path_samples_the_data(path: ProbabilityPath) -> None:
    """Samplers without noise reach the ODE's solution; with noise, the distribution of the data."""
    config = path.scheduler_config()
    names = [name for name in schedulers_for(config) if not SCHEDULERS[name].for_few_steps]
    assert "dpmpp_2m" in names and len(names) >= 3
    for name in names:
        scheduler = make_scheduler(name, config)
        assert type(path_of_scheduler(scheduler)) is type(path)
        if name in ("dpmpp_2m_sde", "sa_solver"):
            noise = torch.randn(1, 4, 64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
            latents = sampled(scheduler, 60, noise)
            assert float(latents.mean()) == pytest.approx(MEAN, abs=0.03), name
            assert float(latents.std()) == pytest.approx(SPREAD, rel=0.05), name
        else:
            assert error(scheduler, 60) < (0.1 if name == "euler" else 0.06), name


def test_the_config_of_our_schedulers_says_what_was_given() -> None:
    """As that of diffusers' own: other schedulers are made from it."""
    edm = EDMHeunScheduler(sigma_data=0.7, sigma_max=40.0)
    assert diffusers.EDMEulerScheduler.from_config(edm.config).config.sigma_max == 40.0
    assert path_of_config({**edm.config, "_class_name": "EDMHeunScheduler"}).sigma_data == 0.7  # type: ignore[union-attr]
    assert (
        "sigma_data" not in edm.config["_use_default_values"] and "rho" in edm.config["_use_default_values"]
    )


def test_churn_keeps_the_distribution_and_reaches_the_level_at_which_the_denoiser_is_called() -> None:
    """With much churn, sampling has the data's mean and deviation; without, images depend on the noise alone."""
    noise = torch.randn(1, 4, 64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    churned = EDMHeunScheduler(sigma_data=0.5, s_churn=30, s_tmin=0.05, s_tmax=50.0)
    latents, plain = sampled(churned, 60, noise), sampled(EDMHeunScheduler(sigma_data=0.5), 60, noise)
    assert float(latents.mean()) == pytest.approx(MEAN, abs=0.03)
    assert float(latents.std()) == pytest.approx(SPREAD, rel=0.03)
    assert float(torch.corrcoef(torch.stack([latents.flatten(), plain.flatten()]))[0, 1]) < 0.3


def test_a_flow_and_edm_sample_the_same_images() -> None:
    """x_t / alpha_t of a flow is EDM's x at sigma = t / (1 - t): the same model under a change of variables."""
    noise = torch.randn(1, 4, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    flow = make_scheduler("heun", FlowPath().scheduler_config())
    edm = make_scheduler("heun", EDMPath(EDM).scheduler_config())
    torch.testing.assert_close(sampled(flow, 300, noise), sampled(edm, 100, noise), rtol=0, atol=0.01)


def test_ddpm_samples_nearly_the_same_images_as_edm() -> None:
    """It starts at sigma / alpha = 14 rather than 80, where the data's mean still has a weight of 1/14."""
    noise = torch.randn(1, 4, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    edm = sampled(make_scheduler("dpmpp_2m", EDMPath(EDM).scheduler_config()), 60, noise)
    for path in DDPM:
        ddpm = make_scheduler("dpmpp_2m", path.scheduler_config())
        torch.testing.assert_close(sampled(ddpm, 60, noise, path), edm, rtol=0, atol=0.06)


def test_velocity_and_x_0_predictions_sample_the_same_images() -> None:
    """Up to the timesteps, which diffusers truncates to integers in these samplers."""
    noise = torch.randn(1, 4, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    velocity, x_0 = (make_scheduler("dpmpp_2m", path.scheduler_config()) for path in PATHS[:2])
    assert velocity.config.prediction_type == "flow_prediction" and x_0.config.prediction_type == "sample"
    torch.testing.assert_close(sampled(velocity, 20, noise), sampled(x_0, 20, noise), rtol=0, atol=0.01)


@pytest.mark.parametrize(
    ("path", "config"),
    [
        (FlowPath(FlowSettings(shift=3.0)), {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}),
        (FlowPath(FlowSettings(prediction_type="sample", shift=2.0)), None),
        (EDMPath(EDMSettings(sigma_data=0.9, sigma_max=50.0)), None),
    ],
    ids=["foreign flow", "flow", "edm"],
)
def test_a_saved_scheduler_config_gives_back_its_path(path: ProbabilityPath, config: Any) -> None:
    found = path_of_config(config or path.scheduler_config())
    assert found is not None and found.settings == path.settings
    stock = getattr(diffusers, path.scheduler_config()["_class_name"]).from_config(path.scheduler_config())
    again = path_of_scheduler(stock)
    assert type(again) is type(path) and again.settings == path.settings
    assert resolve_scheduler("model", path.scheduler_config(), None) == ("dpmpp_2m", False)


def test_noising_equals_that_of_diffusers() -> None:
    x_0, noise = torch.randn(2, 1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    flow = make_scheduler("euler", FlowPath().scheduler_config())
    flow.set_timesteps(10)
    at = flow.timesteps[3:4]
    torch.testing.assert_close(FlowPath().add_noise(x_0, noise, at), flow.scale_noise(x_0, at, noise))
    edm = make_scheduler("euler", EDMPath(EDM).scheduler_config())
    edm.set_timesteps(10)
    at = edm.timesteps[3:4]
    ours = EDMPath(EDM).add_noise(x_0, noise, at)
    torch.testing.assert_close(ours, edm.add_noise(x_0, noise, at))
    torch.testing.assert_close(EDMPath(EDM).scale_model_input(ours, at), edm.scale_model_input(ours, at[0]))


@pytest.mark.parametrize("name", ["ddim", "euler_a", "lms"])
def test_a_sampler_that_cannot_follow_a_path_is_refused(name: str) -> None:
    with pytest.raises(
        UserError, match=f"scheduler '{name}' does not support flow models: use euler, heun, dpmpp_2m"
    ):
        make_scheduler(name, FlowPath().scheduler_config())
    with pytest.raises(UserError, match="no Karras spacing on this model's path"):
        make_scheduler("dpmpp_2m", EDMPath(EDM).scheduler_config(), karras=True)


def test_a_velocity_sampler_refuses_a_model_that_predicts_x_0() -> None:
    with pytest.raises(UserError, match="'euler' does not support models with prediction type sample"):
        make_scheduler("euler", PATHS[1].scheduler_config())


def least_loss(path: Any, timesteps: Tensor) -> Tensor:
    """The variance of the target given x_t: that of x_0, scaled by the target's dependence on x_0."""
    alpha, sigma = path.alpha(timesteps), path.sigma(timesteps)
    one, none = torch.ones_like(alpha), torch.zeros_like(alpha)
    change = path.target(one, -alpha / sigma, timesteps) - path.target(none, none, timesteps)
    return change**2 * SPREAD**2 * sigma**2 / (alpha**2 * SPREAD**2 + sigma**2)


# EDM's target depends on the input only if its assumed standard deviation differs from the data's
@pytest.mark.parametrize(
    "path",
    [*PATHS[:2], EDMPath(EDMSettings(sigma_data=2.0)), *SDES],
    ids=["flow", "flow x_0", "edm", *SDE_NAMES],
)
def test_the_objective_is_lowest_at_the_exact_denoiser(path: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    shape = (512, 1, 4, 4)
    latents = MEAN + SPREAD * torch.randn(shape, generator=generator, dtype=torch.float64)
    noise = torch.randn(shape, generator=generator, dtype=torch.float64)
    settings = ObjectiveSettings()
    timesteps = timestep_at(torch.rand(512, generator=generator, dtype=torch.float64), path, settings)
    losses = [
        diffusion_loss(ExactDenoiser(path, factor), latents, noise, timesteps, NO_PROMPT, path, settings)
        for factor in (0.9, 1.0, 1.1)
    ]
    low, exact, high = (float(each.mean()) for each in losses)
    assert exact < low and exact < high
    assert exact == pytest.approx(float(least_loss(path, timesteps).mean()), rel=0.05)
    tenths = path.tenth(timesteps)
    assert tenths.min() == 0 and tenths.max() == 9


@pytest.mark.parametrize("path", [*PATHS, *DDPM, *SDES], ids=[*NAMES, *SDE_NAMES])
def test_a_path_is_as_in_the_table(path: ProbabilityPath) -> None:
    """The table in ldm/diffusion/paths.py, row by row."""
    generator = torch.Generator().manual_seed(0)
    x_0, noise, a = torch.randn(3, 5, 1, 4, 4, generator=generator, dtype=torch.float64)
    timesteps = path.timesteps_at(torch.linspace(0.05, 0.95, 5, dtype=torch.float64))
    alpha, sigma = path.alpha(timesteps).double(), path.sigma(timesteps).double()
    unit = {
        "ddpm": alpha**2 + sigma**2, "vp": alpha**2 + sigma**2, "flow": alpha + sigma, "edm": alpha, "ve": alpha,
    }[path.name]  # fmt: skip
    torch.testing.assert_close(unit, torch.ones_like(alpha), rtol=1e-6, atol=0)
    x_t, s = alpha * x_0 + sigma * noise, 0.5
    c = 1 / (sigma**2 + s**2).sqrt()
    target, clean, square = {
        "epsilon": (noise, (x_t - sigma * a) / alpha, (sigma / alpha) ** 2),
        "v_prediction": (alpha * noise - sigma * x_0, alpha * x_t - sigma * a, sigma**2),
        "sample": (x_0, a, torch.ones_like(alpha)),
        "flow_prediction": (noise - x_0, x_t - sigma * a, sigma**2),
        "edm": (
            c * (sigma * x_0 / s - s * noise),
            c**2 * s**2 * x_t + c * sigma * s * a,
            (c * sigma * s) ** 2,
        ),
    }[path.prediction_type]
    torch.testing.assert_close(path.target(x_0, noise, timesteps), target, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(path.to_x_0(a, x_t, timesteps), clean, rtol=1e-5, atol=1e-5)
    slope = path.to_x_0(a + 1, x_t, timesteps) - path.to_x_0(a, x_t, timesteps)
    torch.testing.assert_close(slope**2, square.expand_as(slope), rtol=1e-4, atol=1e-6)
    if path.prediction_type != "edm":
        weight = loss_weight(path.snr(timesteps), path.prediction_type, ObjectiveSettings(weighting="x_0"))
        if path.prediction_type == "epsilon":
            square = square.clamp(1 / MAX_SNR, 1 / MIN_SNR)
        torch.testing.assert_close(weight.double(), square.view(-1), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("path", [*PATHS, *DDPM, *SDES], ids=[*NAMES, *SDE_NAMES])
def test_a_target_converts_back_to_its_clean_latents(path: ProbabilityPath) -> None:
    x_0, noise = torch.randn(2, 5, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    timesteps = path.timesteps_at(torch.linspace(0.05, 0.95, 5))
    target = path.target(x_0, noise, timesteps)
    found = path.to_x_0(target, path.add_noise(x_0, noise, timesteps), timesteps)
    torch.testing.assert_close(found, x_0, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_ddpm_has_float_levels_between_its_rows(prediction_type: Any) -> None:
    path = DDPMPath(ScheduleSettings(prediction_type=prediction_type))
    rows = torch.tensor([3, 500, 998])
    torch.testing.assert_close(path.alpha(rows.double()), path.alpha(rows).double(), rtol=1e-5, atol=0)
    between = path.sigma(rows + 0.5)
    assert (path.sigma(rows) < between).all() and (between < path.sigma(rows + 1)).all()
    ratio = (between / path.alpha(rows + 0.5)).flatten().tolist()
    assert path.noise_to_signal((rows + 0.5).tolist()) == pytest.approx(ratio, rel=1e-4)


def test_a_weighting_unsupported_for_a_path_is_rejected() -> None:
    latents = torch.zeros(1, 1, 4, 4)
    settings = ObjectiveSettings(weighting="min_snr")
    with pytest.raises(UserError, match="'min_snr' with prediction type 'edm': use none"):
        diffusion_loss(
            ExactDenoiser(PATHS[2]), latents, latents, torch.tensor([0.1]), NO_PROMPT, PATHS[2], settings
        )


@pytest.mark.parametrize("weighting", ["min_snr", "p2", "debiased", "snr_plus_one", "x_0"])
def test_a_weighting_means_the_same_for_velocity_and_x_0(weighting: Any) -> None:
    """An error d of the velocity is one of sigma d of x_0."""
    settings, timesteps = ObjectiveSettings(weighting=weighting), torch.tensor([20.0, 300.0, 700.0, 970.0])
    path = FlowPath()
    snr, sigma = path.snr(timesteps), path.sigma(timesteps).view(-1)
    of_velocity = loss_weight(snr, "flow_prediction", settings)
    torch.testing.assert_close(of_velocity, loss_weight(snr, "sample", settings) * sigma**2)
    ends = loss_weight(path.snr(torch.tensor([0.0, 1000.0])), "flow_prediction", settings)
    assert bool(ends.isfinite().all())


def test_edm_weighs_the_error_of_x_0_as_in_its_paper() -> None:
    """Table 1 of Karras et al. 2022: lambda = (sigma^2 + sigma_data^2) / (sigma sigma_data)^2."""
    path = EDMPath(EDM)
    at = path.timesteps_at(torch.linspace(0.05, 0.95, 7, dtype=torch.float64))
    sigma = path.sigma(at)
    torch.testing.assert_close((sigma**2 + 0.25) / (sigma * 0.5) ** 2, path.c_out(at) ** -2)


def test_edm_positions_are_log_normal_and_finite() -> None:
    position = torch.linspace(0, 1, 10_001)
    log_sigma = 4 * EDMPath(EDM).timesteps_at(position)
    assert bool(log_sigma.isfinite().all())
    assert float(log_sigma.mean()) == pytest.approx(-1.2, abs=0.01)
    assert float(log_sigma.std()) == pytest.approx(1.2, abs=0.02)


def test_the_shift_grows_with_the_size_of_the_image() -> None:
    """Eq. 23 of Esser et al. 2024: four times the pixels double the shift."""
    settings = ObjectiveSettings(timestep_shift=1.5, shift_by_size=True)
    doubled = ObjectiveSettings(timestep_shift=3.0)
    position = torch.linspace(0, 0.99, 20)
    torch.testing.assert_close(
        timestep_at(position, FlowPath(), settings, size_ratio=4.0),
        timestep_at(position, FlowPath(), doubled),
    )
    torch.testing.assert_close(
        timestep_at(position, FlowPath(), settings), 1000 * 1.5 * position / (1 + 0.5 * position)
    )

"""Score-based models: the SDEs against the paper's equations, diffusers' schedulers and other paths.

The data is Gaussian, with correlated channels, so its score is known at every noise level.
"""

from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import ScoreSdeVeScheduler
from diffusers.schedulers.deprecated.scheduling_sde_vp import ScoreSdeVpScheduler
from torch import Tensor

from ldm.diffusion.path import DDPMPath, ProbabilityPath, ScheduleSettings
from ldm.diffusion.paths import path_name, path_of_config, path_of_scheduler
from ldm.diffusion.predictor_corrector import (
    PredictorCorrectorScheduler,
    ancestral,
    corrected,
    reverse_diffusion,
)
from ldm.diffusion.sampling import denoise, plan_sampling
from ldm.diffusion.schedulers import make_scheduler, resolve_scheduler, schedulers_for, trained_path
from ldm.diffusion.score_sde import ScoreSDEPath
from ldm.diffusion.ve import VEPath, VESettings
from ldm.diffusion.vp import VPPath, VPSettings
from ldm.types import Conditioning, Step

PATHS: list[ScoreSDEPath] = [VPPath(), VEPath()]
NO_PROMPT = Conditioning(torch.zeros(1, 1, 1))
MEAN = torch.tensor([0.4, -0.7], dtype=torch.float64)
COVARIANCE = torch.tensor([[0.5, 0.3], [0.3, 0.9]], dtype=torch.float64)
NOISE = torch.randn(1, 2, 64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class Exact:
    """The noise that x_t has in expectation, for pixels x_0 ~ N(MEAN, COVARIANCE)."""

    def __init__(self, path: ProbabilityPath) -> None:
        self.path = path

    def __call__(
        self, latents: Tensor, timesteps: Tensor, conditioning: Conditioning, *, step: Step | None = None
    ) -> Tensor:
        at = timesteps[:1].double()
        alpha, sigma = self.path.alpha(at), self.path.sigma(at)
        x_t = latents / self.path.scale_model_input(torch.ones_like(alpha), at)
        centred = x_t - alpha * MEAN.view(1, 2, 1, 1)
        of_x_t = alpha.squeeze() ** 2 * COVARIANCE + sigma.squeeze() ** 2 * torch.eye(2)
        return sigma * torch.einsum("ij,bjhw->bihw", torch.linalg.inv(of_x_t), centred)


def sampled(scheduler: Any, num_steps: int, path: ProbabilityPath, noise: Tensor = NOISE) -> Tensor:
    generators = [torch.Generator().manual_seed(101 + row) for row in range(len(noise))]
    plan = plan_sampling(scheduler, num_steps)
    (*_, (_, latents)) = denoise(Exact(path), plan, noise, NO_PROMPT, generators=generators)
    return latents


@pytest.mark.parametrize("path", PATHS, ids=["vp", "ve"])
def test_the_marginals_solve_the_sde(path: ScoreSDEPath) -> None:
    """alpha' = f alpha and (sigma^2)' = 2 f sigma^2 + g^2, with f and g of the paper's Eq. 30 and 32."""
    time, step = torch.linspace(0.01, 0.99, 50, dtype=torch.float64), 1e-5
    (alpha, sigma), (later, more), (earlier, less) = (path.marginal(time + d) for d in (0.0, step, -step))
    if isinstance(path, VPPath):
        beta = 0.1 + time * (20 - 0.1)
        f, g_square = -beta / 2, beta
    else:
        f, g_square = torch.zeros_like(time), sigma**2 * 2 * np.log(50 / 0.01)
    torch.testing.assert_close((later - earlier) / (2 * step), f * alpha, rtol=1e-6, atol=1e-8)
    slope = (more**2 - less**2) / (2 * step)
    torch.testing.assert_close(slope, 2 * f * sigma**2 + g_square, rtol=1e-6, atol=1e-8)


def test_vp_is_the_limit_of_ddpm_with_linear_betas() -> None:
    """Appendix B of the paper: DDPM's betas are beta(t) / 1000."""
    ddpm = DDPMPath(ScheduleSettings(beta_schedule="linear", beta_start=1e-4, beta_end=0.02))
    rows = torch.arange(0, 1000, 37)
    torch.testing.assert_close(VPPath().alpha(rows.double()).float(), ddpm.alpha(rows), rtol=0.05, atol=0)
    assert float((VPPath().alpha(rows.double()) - ddpm.alpha(rows)).abs().max()) < 3e-3


@pytest.mark.parametrize(
    "path",
    [
        *PATHS,
        VPPath(VPSettings(beta_min=0.3, beta_max=12.5)),
        VEPath(VESettings(sigma_min=0.02, sigma_max=28.3)),
    ],
    ids=["vp", "ve", "other vp", "other ve"],
)
def test_a_saved_table_gives_back_its_path_and_every_stock_scheduler_has_its_levels(
    path: ScoreSDEPath,
) -> None:
    config = path.scheduler_config()
    found = path_of_config(config)
    assert type(found) is type(path) and found.settings == path.settings
    assert type(trained_path(config, "m")) is type(path) and path_name(config) == path.name
    stock = diffusers.EulerDiscreteScheduler.from_config(config)
    theirs = ((1 - stock.alphas_cumprod.double()) / stock.alphas_cumprod.double()).sqrt()
    ours = torch.from_numpy(np.exp(path.log_ratios()))
    torch.testing.assert_close(theirs, ours, rtol=2e-3, atol=0)
    again = path_of_scheduler(stock)
    assert type(again) is type(path) and again.settings == path.settings
    assert {"ddim", "dpmpp_2m", "euler", "pc"} <= set(schedulers_for(config))
    own = {"vp": "ddim", "ve": "euler"}[path.name]
    assert resolve_scheduler("model", config, None) == (own, False)


@pytest.mark.parametrize("betas", [np.linspace(1e-4, 0.02, 1000), [0.1] * 10, [2.0] * 1000, [0.0] * 1000])
def test_other_tables_are_no_sde(betas: Any) -> None:
    assert path_of_config({"trained_betas": betas, "_class_name": "DDIMScheduler"}) is None


@pytest.mark.parametrize("path", PATHS, ids=["vp", "ve"])
@pytest.mark.parametrize("name", ["ddim", "euler", "dpmpp_2m", "heun", "pc"])
def test_samplers_reach_the_mean_and_the_covariance_of_the_data(path: ScoreSDEPath, name: str) -> None:
    """The probability-flow ODE, which ddim, euler and dpmpp_2m solve, and predictor-corrector sampling."""
    latents = sampled(make_scheduler(name, path.scheduler_config()), 100, path)
    pixels = latents[0].flatten(1)
    torch.testing.assert_close(pixels.mean(dim=1), MEAN, rtol=0, atol=0.05)
    torch.testing.assert_close(torch.cov(pixels), COVARIANCE, rtol=0, atol=0.06)


@pytest.mark.parametrize("predictor", ["ancestral", "reverse_diffusion"])
@pytest.mark.parametrize("corrector_steps", [0, 2])
def test_each_predictor_reaches_the_data_with_and_without_corrector(
    predictor: str, corrector_steps: int
) -> None:
    config = {**VEPath().scheduler_config(), "predictor": predictor, "corrector_steps": corrector_steps}
    scheduler = PredictorCorrectorScheduler.from_config(config)
    pixels = sampled(scheduler, 200, PATHS[1])[0].flatten(1)
    torch.testing.assert_close(pixels.mean(dim=1), MEAN, rtol=0, atol=0.05)
    torch.testing.assert_close(torch.cov(pixels), COVARIANCE, rtol=0, atol=0.1)


def test_the_corrector_mends_what_a_coarse_predictor_leaves() -> None:
    """The paper's section 4.2, with 15 steps of reverse diffusion: its error falls by more than half."""
    errors = []
    for corrector_steps in (0, 3):
        config = {"predictor": "reverse_diffusion", "corrector_steps": corrector_steps}
        scheduler = PredictorCorrectorScheduler.from_config({**VEPath().scheduler_config(), **config})
        pixels = sampled(scheduler, 15, PATHS[1])[0].flatten(1)
        errors.append(float((torch.cov(pixels) - COVARIANCE).abs().max()))
    assert errors[1] < 0.5 * errors[0]


def test_all_paths_sample_the_same_images() -> None:
    """VP, VE and DDPM are one process under a change of variables; they differ in where they start."""
    ddpm = DDPMPath(ScheduleSettings())
    # DDPM's last level is the lowest: start there on every path
    deviation = ddpm.noise_to_signal([999])[0]
    ve = VEPath(VESettings(sigma_max=deviation))
    config = {**ddpm.scheduler_config(), "timestep_spacing": "trailing"}
    at_ve = sampled(make_scheduler("dpmpp_2m", ve.scheduler_config()), 250, ve)
    at_ddpm = sampled(make_scheduler("dpmpp_2m", config), 250, ddpm)
    torch.testing.assert_close(at_ve, at_ddpm, rtol=0, atol=0.05)
    vp = VPPath()
    ve = VEPath(VESettings(sigma_max=vp.noise_to_signal([999])[0]))
    at_vp = sampled(make_scheduler("dpmpp_2m", vp.scheduler_config()), 250, vp)
    at_ve = sampled(make_scheduler("dpmpp_2m", ve.scheduler_config()), 250, ve)
    torch.testing.assert_close(at_vp, at_ve, rtol=0, atol=0.05)


def test_pc_without_corrector_is_ancestral_sampling_of_diffusers() -> None:
    """Euler a is Eq. 47 of the paper in other words."""
    config = {**VEPath().scheduler_config(), "corrector_steps": 0}
    ours = sampled(PredictorCorrectorScheduler.from_config(config), 20, PATHS[1])
    theirs = sampled(make_scheduler("euler_a", VEPath().scheduler_config()), 20, PATHS[1])
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_a_step_of_ve_is_that_of_diffusers_scheduler() -> None:
    """`ScoreSdeVeScheduler`, with the same levels and noise, for a batch of one."""
    theirs = ScoreSdeVeScheduler(num_train_timesteps=1000, snr=0.16, sigma_min=0.01, sigma_max=50.0)
    x, score = torch.randn(2, 1, 3, 4, 4, generator=torch.Generator().manual_seed(2))
    levels = theirs.discrete_sigmas
    torch.testing.assert_close(
        levels.double(), torch.from_numpy(np.exp(VEPath().log_ratios())), rtol=1e-5, atol=0
    )
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(3))
    sample, mean = theirs.step_pred(
        score, torch.tensor(1.0), x, generator=torch.Generator().manual_seed(3), return_dict=False
    )
    torch.testing.assert_close(reverse_diffusion(x, score, noise, levels[999], levels[998]), sample)
    torch.testing.assert_close(
        reverse_diffusion(x, score, torch.zeros_like(x), levels[999], levels[998]), mean
    )
    (corrected_by_theirs,) = theirs.step_correct(
        score, x, generator=torch.Generator().manual_seed(3), return_dict=False
    )
    torch.testing.assert_close(corrected(x, score, noise, 0.16), corrected_by_theirs)


def test_a_step_of_vp_is_that_of_diffusers_scheduler() -> None:
    """`ScoreSdeVpScheduler` takes Euler-Maruyama steps, which agree with ancestral sampling to first order."""
    path, index = VPPath(), 600
    theirs = ScoreSdeVpScheduler(num_train_timesteps=1000)
    theirs.set_timesteps(1000)
    x, output = torch.randn(2, 1, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    at, before = torch.tensor([float(index)]).double(), torch.tensor([index - 1.0]).double()
    _, mean = theirs.step_pred(output, x, path.time(at))
    (alpha, sigma), (following_alpha, following_sigma) = (
        (path.alpha(each), path.sigma(each)) for each in (at, before)
    )
    score = -output / (sigma / alpha)
    none = torch.zeros_like(x)
    ours = following_alpha * ancestral(
        x / alpha, score, none, sigma / alpha, following_sigma / following_alpha
    )
    moved = float((mean - x).abs().max())
    assert float((ours - mean).abs().max()) < 0.02 * moved


def test_an_image_does_not_depend_on_its_batch() -> None:
    noise = torch.randn(2, 2, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    noise[1] *= 3
    scheduler = make_scheduler("pc", VEPath().scheduler_config())
    both, alone = sampled(scheduler, 5, PATHS[1], noise), sampled(scheduler, 5, PATHS[1], noise[:1])
    assert torch.equal(both[:1], alone)

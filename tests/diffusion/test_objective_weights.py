"""The loss weights: closed forms, equal weights of x_0 for each prediction type, finite at both ends of the path."""

from typing import get_args

import pytest
import torch
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.training_utils import compute_snr
from torch import Tensor

from ldm.diffusion.objective import MAX_SNR, MIN_SNR, ObjectiveSettings, diffusion_loss, loss_weight
from ldm.diffusion.path import DDPMPath, PredictionType, ScheduleSettings
from ldm.types import Conditioning, Step

KINDS: list[PredictionType] = ["epsilon", "v_prediction", "sample"]
WEIGHTINGS = get_args(ObjectiveSettings.model_fields["weighting"].annotation)
PROMPTS = Conditioning(torch.zeros(1, 1, 1))
SNR = torch.tensor([0.0047, 0.3, 1.0, 5.0, 80.0, 1175.0])


def weights(weighting: str, snr: Tensor, prediction_type: PredictionType, **more: float) -> Tensor:
    settings = ObjectiveSettings.model_validate({"weighting": weighting, **more})
    return loss_weight(snr, prediction_type, settings)


def of_x_0(weight: Tensor, snr: Tensor, prediction_type: PredictionType) -> Tensor:
    """The weight in terms of the squared error of x_0, which is 1/snr of epsilon's and 1/(snr + 1) of v's."""
    return {"epsilon": weight * snr, "v_prediction": weight * (snr + 1), "sample": weight}[prediction_type]


@pytest.mark.parametrize("prediction_type", KINDS)
@pytest.mark.parametrize(
    ("weighting", "more", "expected"),
    [
        ("min_snr", {"min_snr_gamma": 3.0}, SNR.clamp(max=3)),
        ("p2", {"p2_k": 0.5, "p2_gamma": 0.7}, SNR / (0.5 + SNR) ** 0.7),
        ("p2", {}, SNR / (1 + SNR)),
        ("debiased", {}, SNR.sqrt()),
        ("snr_plus_one", {}, SNR + 1),
        ("x_0", {}, torch.ones(6)),
    ],
)
def test_each_prediction_type_weights_the_error_of_x_0_equally(
    prediction_type: PredictionType, weighting: str, more: dict[str, float], expected: Tensor
) -> None:
    weight = weights(weighting, SNR, prediction_type, **more)
    torch.testing.assert_close(of_x_0(weight, SNR, prediction_type), expected, rtol=1e-5, atol=0)


def test_the_epsilon_weights_equal_the_papers() -> None:
    """As published: P2 1/(k + snr)^gamma, debiased 1/sqrt(snr), min-SNR min(snr, 5)/snr."""
    assert torch.allclose(weights("p2", SNR, "epsilon", p2_gamma=0.5), (1 + SNR) ** -0.5)
    assert torch.allclose(weights("debiased", SNR, "epsilon"), SNR**-0.5)
    assert torch.allclose(weights("min_snr", SNR, "epsilon"), SNR.clamp(max=5) / SNR)


@pytest.mark.parametrize("prediction_type", KINDS)
@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_the_weight_is_finite_from_pure_noise_to_none(
    weighting: str, prediction_type: PredictionType
) -> None:
    snr = torch.tensor([0.0, 1e-38, MIN_SNR, 1.0, MAX_SNR, 1e38, torch.inf])
    for more in [{"p2_gamma": gamma} for gamma in (0.0, 0.5, 1.0, 2.0)] if weighting == "p2" else [{}]:
        weight = weights(weighting, snr, prediction_type, **more)
        assert torch.isfinite(weight).all() and (weight >= 0).all() and (weight <= MAX_SNR + 1).all()
        assert (weight[1:-1] > 0).any()


@pytest.mark.parametrize("prediction_type", ["v_prediction", "sample"])
@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_loss_and_gradient_are_finite_at_zero_terminal_snr(
    weighting: str, prediction_type: PredictionType
) -> None:
    path = ScheduleSettings(rescale_betas_zero_snr=True, prediction_type=prediction_type)
    scale = torch.ones((), requires_grad=True)

    def scaled(
        latents: Tensor, timesteps: Tensor, conditioning: Conditioning, *, step: Step | None = None
    ) -> Tensor:
        return scale * latents

    settings = ObjectiveSettings.model_validate({"weighting": weighting})
    timesteps, x = torch.tensor([0, 998, 999]), torch.randn(2, 3, 4, 2, 2)
    loss = diffusion_loss(scaled, x[0], x[1], timesteps, PROMPTS, DDPMPath(path), settings)
    (gradient,) = torch.autograd.grad(loss.sum(), scale)
    assert torch.isfinite(loss).all() and torch.isfinite(gradient)


@pytest.mark.parametrize("zero_snr", [False, True])
@pytest.mark.parametrize("prediction_type", KINDS)
def test_min_snr_equals_diffusers_training_script(prediction_type: PredictionType, zero_snr: bool) -> None:
    """`train_text_to_image.py`: min(snr, gamma) over snr for epsilon, over snr + 1 for v, at every timestep."""
    if zero_snr and prediction_type == "epsilon":
        return  # rejected by the settings: diffusers divides by 0 there
    path = ScheduleSettings(rescale_betas_zero_snr=zero_snr, prediction_type=prediction_type)
    schedule, timesteps = DDPMPath(path), torch.arange(1000)
    theirs = compute_snr(DDPMScheduler.from_config(path.model_dump()), timesteps)
    torch.testing.assert_close(schedule.snr(timesteps), theirs, rtol=2e-4, atol=0)
    divisor = {"epsilon": theirs, "v_prediction": theirs + 1, "sample": 1}[prediction_type]
    ours = weights("min_snr", schedule.snr(timesteps), prediction_type)
    torch.testing.assert_close(ours, theirs.clamp(max=5) / divisor, rtol=2e-4, atol=0)


def test_stable_diffusions_levels_are_not_clamped() -> None:
    snr = DDPMPath(ScheduleSettings()).snr(torch.arange(1000))
    assert snr.min() > MIN_SNR and snr.max() < MAX_SNR

"""diffusers' guiders: APG without projection, zero predictions for models that predict noise, no second model."""

from inspect import signature

import pytest
import torch
from diffusers.guiders import AdaptiveProjectedGuidance as TheirAPG
from diffusers.guiders import AutoGuidance, ClassifierFreeZeroStarGuidance
from torch import Tensor

from ldm.diffusion.guidance import NEGATIVE, PROMPT
from ldm.diffusion.guidance_methods import AdaptiveProjectedGuidance, cfg_zero_star
from ldm.diffusion.path import DDPMPath, ScheduleSettings
from ldm.models.generation_settings import GenerationSettings
from ldm.types import Step

T = torch.tensor([500])
NOISE, U, C = (torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in range(3))
U, C = 0.1 * U, 0.1 * C
PATH, FIRST = DDPMPath(ScheduleSettings()), Step(0, 0, 500.0, 1.0)
CFG = U + 5.0 * (C - U)
PREDICTIONS = {NEGATIVE: U, PROMPT: C}


def begun(guider: TheirAPG | ClassifierFreeZeroStarGuidance) -> Tensor:
    guider.set_state(0, 10, torch.tensor(500))
    guider.prepare_inputs({"x": (C, U)})
    prediction: Tensor = guider.forward(C, U).pred
    return prediction


def test_their_projection_is_off_by_default_and_ours_is_on() -> None:
    theirs = begun(TheirAPG(5.0))
    if not torch.allclose(theirs, CFG, atol=1e-5):
        pytest.skip("diffusers' APG projects by default now")
    settings = GenerationSettings(guidance="apg")
    ours = AdaptiveProjectedGuidance(
        5.0,
        PATH,
        eta=settings.apg_eta,
        momentum=settings.apg_momentum,
        norm_threshold=settings.apg_norm_threshold,
    )
    assert (ours(PREDICTIONS, NOISE, T, FIRST) - CFG).abs().max() > 0.01


def test_just_above_a_scale_of_one_theirs_is_not_the_prompts_prediction() -> None:
    """By default theirs is u + s d with a projected d, where the paper has c + (s - 1) d."""
    theirs = begun(TheirAPG(1.0001, eta=0.0))
    if torch.allclose(theirs, C, atol=1e-3):
        pytest.skip("diffusers' APG starts from the prompt's prediction now")
    assert (theirs - C).abs().max() > 0.01
    ours = AdaptiveProjectedGuidance(1.0001, PATH, eta=0.0)
    assert torch.allclose(ours(PREDICTIONS, NOISE, T, FIRST), C, atol=1e-3)


def test_theirs_predicts_no_noise_in_the_first_step_whatever_the_model_predicts() -> None:
    theirs = begun(ClassifierFreeZeroStarGuidance(5.0))
    if theirs.any():
        pytest.skip("diffusers' CFG-Zero* has no zero steps by default now")
    scale = float(1 / PATH.alpha(T))
    assert torch.allclose(PATH.to_x_0(theirs, NOISE, T), scale * NOISE)  # the noise itself, enlarged
    assert cfg_zero_star(5.0)(PREDICTIONS, NOISE, T, FIRST).abs().max() > 0


def test_their_autoguidance_takes_no_second_model() -> None:
    takes = signature(AutoGuidance.__init__).parameters
    if any("model" in name for name in takes):
        pytest.skip("diffusers' AutoGuidance takes a model now")
    assert {"auto_guidance_layers", "dropout"} <= takes.keys()  # the same network with layers left out

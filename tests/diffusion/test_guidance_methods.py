"""Ways of guiding: identities, closed forms, and diffusers' guiders where they compute the same."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from diffusers.guiders import AdaptiveProjectedGuidance as TheirAPG
from diffusers.guiders import ClassifierFreeZeroStarGuidance
from torch import Tensor

from ldm.diffusion.edm import EDMPath, EDMSettings
from ldm.diffusion.flow import FlowPath, FlowSettings
from ldm.diffusion.guidance import NEGATIVE, OWN_PROMPT, PROMPT, CombineAt, GuidanceInputs, guide_at, rescaled
from ldm.diffusion.guidance_methods import (
    PERTURBED,
    WEAK,
    AdaptiveProjectedGuidance,
    autoguidance,
    cfg_zero_star,
    on_the_mean,
    perturbed_attention_guidance,
)
from ldm.diffusion.path import DDPMPath, PredictionType, ProbabilityPath, ScheduleSettings
from ldm.diffusion.paths import path_of_scheduler
from ldm.diffusion.schedulers import make_scheduler
from ldm.models.generation_settings import GenerationSettings
from ldm.tasks.guiding import guided_by
from ldm.types import Conditioning, Step
from tests.support.tiny_models import SD1_SCHEDULER, SD2_SCHEDULER

TIMESTEPS = torch.tensor([500, 20, 900])
KINDS: list[PredictionType] = ["epsilon", "v_prediction", "sample"]


def random(seed: int) -> Tensor:
    return torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(seed))


LATENTS, U, C, THIRD = (random(seed) for seed in range(4))
PREDICTIONS = {NEGATIVE: U, PROMPT: C, OWN_PROMPT: C, PERTURBED: THIRD, WEAK: THIRD}


def path(kind: PredictionType) -> DDPMPath:
    return DDPMPath(ScheduleSettings(prediction_type=kind))


def step(index: int) -> Step:
    return Step(index, index, 500.0, 1.0)


METHODS: Mapping[str, Callable[[float], CombineAt]] = {
    **{f"apg, {kind}": lambda s, kind=kind: AdaptiveProjectedGuidance(s, path(kind)) for kind in KINDS},
    "apg with all": lambda s: AdaptiveProjectedGuidance(
        s, path("epsilon"), eta=0.5, momentum=-0.5, norm_threshold=3.0
    ),
    "cfg-zero": cfg_zero_star,
    "pag": lambda s: perturbed_attention_guidance(s, 0.0),
    "autoguidance": autoguidance,
}


@pytest.mark.parametrize("name", METHODS)
def test_a_scale_of_one_is_the_prompts_prediction(name: str) -> None:
    torch.testing.assert_close(METHODS[name](1.0)(PREDICTIONS, LATENTS, TIMESTEPS, step(0)), C)


@pytest.mark.parametrize("name", METHODS)
def test_each_image_is_guided_on_its_own(name: str) -> None:
    together, alone = METHODS[name](5.0), METHODS[name](5.0)
    for index in range(2):  # the second with momentum
        mixed = together(PREDICTIONS, LATENTS, TIMESTEPS, step(index))
        one = {branch: each[1:2] for branch, each in PREDICTIONS.items()}
        torch.testing.assert_close(mixed[1:2], alone(one, LATENTS[1:2], TIMESTEPS[1:2], step(index)))


@pytest.mark.parametrize("kind", KINDS)
def test_apg_that_keeps_everything_is_classifier_free_guidance(kind: PredictionType) -> None:
    apg = AdaptiveProjectedGuidance(5.0, path(kind), eta=1.0)
    found = apg(PREDICTIONS, LATENTS, TIMESTEPS, step(0))
    torch.testing.assert_close(found, U + 5.0 * (C - U), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_apg_removes_what_is_parallel_to_x_0(kind: PredictionType) -> None:
    on = path(kind)
    guided = AdaptiveProjectedGuidance(5.0, on)(PREDICTIONS, LATENTS, TIMESTEPS, step(0))
    x_0, guided_x_0 = (on.to_x_0(each, LATENTS, TIMESTEPS) for each in (C, guided))
    along = ((guided_x_0 - x_0) * x_0).sum(dim=(1, 2, 3)) / x_0.square().sum(dim=(1, 2, 3))
    torch.testing.assert_close(along, torch.zeros(3), rtol=0, atol=1e-4)


def test_apg_on_x_0_is_diffusers_formula() -> None:
    """diffusers projects the raw output, which is x_0 for models that predict the sample; its scale is ours - 1."""
    apg = AdaptiveProjectedGuidance(5.0, path("sample"), eta=0.3, momentum=-0.5, norm_threshold=4.0)
    theirs = TheirAPG(4.0, -0.5, 4.0, eta=0.3, use_original_formulation=True)
    for index in range(3):
        theirs.set_state(index, 10, torch.tensor(500))
        theirs.prepare_inputs({"x": (C, U)})
        u, c = random(10 + index), random(20 + index)
        ours = apg({**PREDICTIONS, NEGATIVE: u, PROMPT: c}, LATENTS, TIMESTEPS, step(index))
        torch.testing.assert_close(ours, theirs.forward(c, u).pred)


def test_apg_works_on_x_0_where_the_networks_input_is_scaled() -> None:
    on, noisy, at = EDMPath(EDMSettings()), 3 * LATENTS, torch.tensor([-0.5, 0.0, 0.5])
    apg = AdaptiveProjectedGuidance(5.0, on)
    guided = apg(PREDICTIONS, on.scale_model_input(noisy, at), at, step(0))
    x_0, guided_x_0 = (on.to_x_0(each, noisy, at) for each in (C, guided))
    along = ((guided_x_0 - x_0) * x_0).sum(dim=(1, 2, 3)) / x_0.square().sum(dim=(1, 2, 3))
    torch.testing.assert_close(along, torch.zeros(3), rtol=0, atol=1e-4)


def test_momentum_begins_anew_with_every_sampling() -> None:
    apg = AdaptiveProjectedGuidance(5.0, path("epsilon"), momentum=-0.5)
    first = apg(PREDICTIONS, LATENTS, TIMESTEPS, step(0))
    second = apg(PREDICTIONS, LATENTS, TIMESTEPS, step(1))
    assert not torch.equal(first, second)
    assert torch.equal(apg(PREDICTIONS, LATENTS, TIMESTEPS, step(0)), first)


def test_cfg_zero_star_is_diffusers_after_the_zero_steps() -> None:
    theirs = ClassifierFreeZeroStarGuidance(5.0, zero_init_steps=1)
    for index in range(2):
        theirs.set_state(index, 10, torch.tensor(500))
        ours = cfg_zero_star(5.0, zero_init_steps=1)(PREDICTIONS, LATENTS, TIMESTEPS, step(index))
        torch.testing.assert_close(ours, theirs.forward(C, U).pred)
    assert cfg_zero_star(5.0)(PREDICTIONS, LATENTS, TIMESTEPS, step(0)).abs().min() > 0


@pytest.mark.parametrize("name", ["apg, epsilon", "apg with all", "cfg-zero"])
def test_a_learned_variance_is_the_prompts_and_leaves_the_mean_alone(name: str) -> None:
    """The network has twice the channels; the sampler reads the second half."""
    both = {
        branch: torch.cat([each, random(30 + number)], dim=1)
        for number, (branch, each) in enumerate(PREDICTIONS.items())
    }
    found = on_the_mean(METHODS[name](5.0))(both, LATENTS, TIMESTEPS, step(0))
    assert torch.equal(found[:, :4], METHODS[name](5.0)(PREDICTIONS, LATENTS, TIMESTEPS, step(0)))
    assert torch.equal(found[:, 4:], both[OWN_PROMPT][:, 4:])
    plain = on_the_mean(METHODS[name](5.0))(PREDICTIONS, LATENTS, TIMESTEPS, step(0))
    assert torch.equal(plain, found[:, :4])


@pytest.mark.parametrize("guidance", ["apg", "cfg-zero"])
def test_a_model_with_a_learned_variance_is_guided(guidance: str) -> None:
    def denoiser(
        latents: Tensor, timesteps: Tensor, conditioning: Conditioning, *, step: Step | None = None
    ) -> Tensor:
        mean = (3 * latents * conditioning.prompt_embeds.view(-1, 1, 1, 1)).sin() + 0.3
        return torch.cat([mean, mean.tanh()], dim=1)

    prompt, negative = (Conditioning(torch.full((3, 1, 1), value)) for value in (0.5, 0.2))
    settings = GenerationSettings.model_validate({"guidance": guidance, "guidance_scale": 4.0})
    guided = guided_by(denoiser, negative, settings, GuidanceInputs(path=path("epsilon")))
    found, plain = guided(LATENTS, TIMESTEPS, prompt), denoiser(LATENTS, TIMESTEPS, prompt)
    assert torch.equal(found[:, 4:], plain[:, 4:]) and found.shape == plain.shape
    assert not torch.allclose(found[:, :4], plain[:, :4])


EPSILON = path("epsilon")
CHOSEN: Mapping[str, tuple[dict[str, Any], ProbabilityPath, Callable[[], CombineAt]]] = {
    "apg": (
        {"guidance": "apg", "apg_eta": 0.3, "apg_momentum": -0.4, "apg_norm_threshold": 2.0},
        EPSILON,
        lambda: AdaptiveProjectedGuidance(4.0, EPSILON, eta=0.3, momentum=-0.4, norm_threshold=2.0),
    ),
    "cfg-zero": ({"guidance": "cfg-zero"}, EPSILON, lambda: cfg_zero_star(4.0)),
    "cfg-zero of a flow": (
        {"guidance": "cfg-zero"},
        FlowPath(FlowSettings()),
        lambda: cfg_zero_star(4.0, zero_init_steps=1),
    ),
    "pag": ({"guidance": "pag", "pag_scale": 1.7}, EPSILON, lambda: perturbed_attention_guidance(4.0, 1.7)),
    "autoguidance": ({"guidance": "autoguidance"}, EPSILON, lambda: autoguidance(4.0)),
}


@pytest.mark.parametrize("rescale", [0.0, 0.6])
@pytest.mark.parametrize("name", CHOSEN)
def test_every_setting_reaches_its_formula(name: str, rescale: float) -> None:
    """For two steps inside the interval; outside it, the prediction is the prompt's."""
    given, along, formula = CHOSEN[name]

    def network(shift: float) -> Any:
        def denoiser(
            latents: Tensor, timesteps: Tensor, conditioning: Conditioning, *, step: Step | None = None
        ) -> Tensor:
            return (latents * conditioning.prompt_embeds.view(-1, 1, 1, 1) + shift).sin()

        return denoiser

    prompt, negative = (Conditioning(torch.full((3, 1, 1), value)) for value in (0.5, 0.2))
    at = torch.tensor([400.0, 30.0, 800.0]) if isinstance(along, FlowPath) else TIMESTEPS
    settings = GenerationSettings.model_validate(
        {**given, "guidance_scale": 4.0, "guidance_rescale": rescale, "guidance_interval": (0.0, 0.5)}
    )
    inputs = GuidanceInputs(path=along, weak=network(0.3), perturbed=network(0.6))
    guided = guided_by(network(0.0), negative, settings, inputs)
    own, other, weak, perturbed = (
        network(shift)(LATENTS, at, who)
        for shift, who in ((0.0, prompt), (0.0, negative), (0.3, prompt), (0.6, prompt))
    )
    predictions = {NEGATIVE: other, PROMPT: own, OWN_PROMPT: own, WEAK: weak, PERTURBED: perturbed}
    combine = rescaled(formula(), rescale)
    for index in range(2):
        inside = Step(index, index, 500.0, 1.0, fraction=0.2)
        expected = combine(predictions, LATENTS, at, inside)
        torch.testing.assert_close(guided(LATENTS, at, prompt, step=inside), expected, equal_nan=True)
    outside = Step(3, 3, 500.0, 1.0, fraction=0.7)
    assert torch.equal(guided(LATENTS, at, prompt, step=outside), own)


def test_pag_compares_with_the_prompt_that_was_perturbed() -> None:
    """With joined prompts the prediction is of all of them, and the perturbed one of the first alone."""
    found = perturbed_attention_guidance(5.0, 2.0)(
        {**PREDICTIONS, OWN_PROMPT: random(9)}, LATENTS, TIMESTEPS, None
    )
    torch.testing.assert_close(found, U + 5.0 * (C - U) + 2.0 * (random(9) - THIRD))


def test_the_other_closed_forms() -> None:
    pag = perturbed_attention_guidance(5.0, 2.0)(PREDICTIONS, LATENTS, TIMESTEPS, None)
    torch.testing.assert_close(pag, U + 5.0 * (C - U) + 2.0 * (C - THIRD))
    auto = autoguidance(3.0)(PREDICTIONS, LATENTS, TIMESTEPS, None)
    torch.testing.assert_close(auto, THIRD + 3.0 * (C - THIRD))
    again = rescaled(autoguidance(3.0), 1.0)(PREDICTIONS, LATENTS, TIMESTEPS, None)
    torch.testing.assert_close(again.std(dim=(1, 2, 3)), C.std(dim=(1, 2, 3)))


def test_other_denoisers_are_called_for_the_prompt_alone() -> None:
    def denoiser(
        latents: Tensor, timesteps: Tensor, conditioning: Conditioning, *, step: Step | None = None
    ) -> Tensor:
        return latents * conditioning.prompt_embeds.view(-1, 1, 1, 1)

    def weak(
        latents: Tensor, timesteps: Tensor, conditioning: Conditioning, *, step: Step | None = None
    ) -> Tensor:
        assert len(latents) == len(timesteps) == len(conditioning) == 3
        return latents

    guided = guide_at(denoiser, {}, autoguidance(3.0), others={WEAK: weak})
    found = guided(LATENTS, TIMESTEPS, Conditioning(torch.full((3, 1, 1), 2.0)))
    torch.testing.assert_close(found, 4.0 * LATENTS)


def test_the_path_of_a_scheduler_knows_what_the_network_predicts() -> None:
    assert path_of_scheduler(make_scheduler("euler", SD1_SCHEDULER)).prediction_type == "epsilon"
    assert path_of_scheduler(make_scheduler("euler", SD2_SCHEDULER)).prediction_type == "v_prediction"

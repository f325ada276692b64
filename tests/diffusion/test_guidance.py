"""Guidance over N branches: classifier-free guidance, three branches as in InstructPix2Pix, composed prompts."""

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from ldm.diffusion.guidance import (
    NEGATIVE,
    PROMPT,
    Combine,
    Composition,
    classifier_free_guidance,
    guide,
    guide_with_negative,
)
from ldm.types import Conditioning, Step

LATENTS = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(0))
TIMESTEPS = torch.tensor([500, 500])


def conditioning(*values: float, concat: float | None = None) -> Conditioning:
    """One row per value; the denoiser below multiplies by the value."""
    rows = torch.tensor(values).view(-1, 1, 1)
    extra = None if concat is None else torch.full((len(values), 1, 4, 4), concat)
    return Conditioning(rows, concat=extra)


def denoiser(
    latents: Tensor, timesteps: Tensor, conditioning: Conditioning, *, step: Step | None = None
) -> Tensor:
    """Nonlinear in the conditioning, and independent for each row."""
    said = conditioning.prompt_embeds.view(-1, 1, 1, 1)
    extra = 0.0 if conditioning.concat is None else conditioning.concat
    return torch.sin(latents * said + extra)


def test_two_branches_equal_classifier_free_guidance_bit_for_bit() -> None:
    negative, prompt = (
        denoiser(LATENTS, TIMESTEPS, conditioning(2.0, 2.0)),
        denoiser(LATENTS, TIMESTEPS, conditioning(3.0, 1.0)),
    )
    expected = negative + 7.5 * (prompt - negative)
    general = guide(denoiser, {NEGATIVE: conditioning(2.0)}, classifier_free_guidance(7.5))
    for guided in (general, guide_with_negative(denoiser, conditioning(2.0), 7.5)):
        assert torch.equal(guided(LATENTS, TIMESTEPS, conditioning(3.0, 1.0)), expected)


def instruct_pix2pix(text_scale: float, image_scale: float) -> Combine:
    """Brooks et al. 2023, Eq. 3: e(0,0) + s_I (e(I,0) - e(0,0)) + s_T (e(I,T) - e(I,0))."""

    def combine(predictions: Mapping[str, Tensor]) -> Tensor:
        nothing, image, both = predictions["nothing"], predictions["image"], predictions[PROMPT]
        return nothing + image_scale * (image - nothing) + text_scale * (both - image)

    return combine


def three_branches(text_scale: float, image_scale: float) -> Tensor:
    branches = {"nothing": conditioning(0.5, concat=0.0), "image": conditioning(0.5, concat=1.0)}
    guided = guide(denoiser, branches, instruct_pix2pix(text_scale, image_scale))
    return guided(LATENTS, TIMESTEPS, conditioning(3.0, 1.0, concat=1.0))


def test_three_branches_are_linear_in_both_scales() -> None:
    origin, text, image = three_branches(0, 0), three_branches(1, 0), three_branches(0, 1)
    expected = origin + 7.5 * (text - origin) + 1.5 * (image - origin)
    torch.testing.assert_close(three_branches(7.5, 1.5), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(three_branches(0, 0), denoiser(LATENTS, TIMESTEPS, conditioning(0.5, 0.5, concat=0.0)))
    both = denoiser(LATENTS, TIMESTEPS, conditioning(3.0, 1.0, concat=1.0))
    torch.testing.assert_close(three_branches(1, 1), both, rtol=0, atol=1e-6)
    assert (text - origin).abs().max() > 0.1 and (image - origin).abs().max() > 0.1


def test_composed_prompts_are_a_weighted_sum() -> None:
    others = ((0.5, conditioning(2.0)), (-0.25, conditioning(4.0)))
    composition = Composition(1.0, others)
    guided = guide_with_negative(denoiser, conditioning(0.0), 3.0, composition=composition)
    found = guided(LATENTS, TIMESTEPS, conditioning(3.0, 1.0))
    first = torch.sin(LATENTS * torch.tensor([3.0, 1.0]).view(-1, 1, 1, 1))
    # the negative branch predicts sin(0) = 0
    by_hand = 3.0 * (first + 0.5 * torch.sin(2.0 * LATENTS) - 0.25 * torch.sin(4.0 * LATENTS))
    torch.testing.assert_close(found, by_hand, rtol=1e-5, atol=1e-5)
    for scale in (0.0, 1.0):  # without guidance, and outside its interval, the prompts are joined too
        alone = guide_with_negative(denoiser, conditioning(0.0), scale, composition=composition)
        outside = guide_with_negative(
            denoiser, conditioning(0.0), 3.0, interval=(0.5, 1.0), composition=composition
        )
        torch.testing.assert_close(alone(LATENTS, TIMESTEPS, conditioning(3.0, 1.0)), by_hand / 3)
        early = Step(0, 0, 500.0, 1.0, 0.0)
        joined = outside(LATENTS, TIMESTEPS, conditioning(3.0, 1.0), step=early)
        torch.testing.assert_close(joined, by_hand / 3)


def test_all_branches_go_through_the_denoiser_in_one_call() -> None:
    rows = []

    def counting(
        latents: Tensor, timesteps: Tensor, conditioning: Conditioning, *, step: Step | None = None
    ) -> Tensor:
        rows.append((len(latents), len(timesteps), len(conditioning)))
        return latents

    branches = {name: conditioning(1.0) for name in ("a", "b", NEGATIVE)}
    guide(counting, branches, lambda predictions: predictions[PROMPT])(
        LATENTS, TIMESTEPS, conditioning(1.0, 2.0)
    )
    assert rows == [(8, 8, 8)]


def test_a_branch_with_a_missing_field_is_an_error() -> None:
    guided = guide_with_negative(denoiser, conditioning(2.0), 5.0)
    with pytest.raises(ValueError, match="concat is missing in conditioning 0 of 2"):
        guided(LATENTS, TIMESTEPS, conditioning(3.0, 1.0, concat=1.0))

"""UNets that need more than text: `UNetDenoiser` and the sampling loop are compared with diffusers' calls."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import ControlNetModel, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor

from ldm.diffusion.guidance import guide_with_negative
from ldm.diffusion.sampling import denoise, plan_sampling
from ldm.diffusion.schedulers import make_scheduler
from ldm.errors import UserError
from ldm.models.engines.feature_reuse import SplitUNet
from ldm.models.fresh import add_guidance_embedding
from ldm.models.unet import UNetDenoiser
from ldm.types import Conditioning
from tests.support.tiny_models import SD1_SCHEDULER

SHAPE: dict[str, Any] = {
    "sample_size": 8,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "block_out_channels": (16, 32),
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "cross_attention_dim": 32,
    "attention_head_dim": 2,
}
SDXL = {
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 6 * 8 + 24,
}


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make_unet(**changes: Any) -> Any:
    torch.manual_seed(0)
    return UNet2DConditionModel(**{**SHAPE, **changes}).eval().requires_grad_(False)


def inputs(num_rows: int, seed: int, **more: Any) -> Conditioning:
    return Conditioning(normal(num_rows, 6, 32, seed=seed), **more)


CASES: dict[str, tuple[dict[str, Any], Conditioning, Conditioning]] = {
    "inpainting, 9 channels": (
        {"in_channels": 9},
        inputs(2, 1, concat=normal(2, 5, 8, 8, seed=2)),
        inputs(2, 3, concat=normal(2, 5, 8, 8, seed=2)),
    ),
    "upscaling, 7 channels and a noise level": (
        {"in_channels": 7, "num_class_embeds": 1000},
        inputs(2, 1, concat=normal(2, 3, 8, 8, seed=2), class_labels=torch.tensor([20, 300])),
        inputs(2, 3, concat=normal(2, 3, 8, 8, seed=2), class_labels=torch.tensor([20, 300])),
    ),
    "SDXL": (
        SDXL,
        inputs(
            2, 1, pooled=normal(2, 24, seed=4), time_ids=torch.tensor([[1024.0, 768, 0, 16, 1024, 768]] * 2)
        ),
        inputs(
            2, 3, pooled=normal(2, 24, seed=5), time_ids=torch.tensor([[512.0, 512, 0, 0, 1024, 768]] * 2)
        ),
    ),
}


def call(unet: Any, latents: Tensor, timesteps: Any, conditioning: Conditioning) -> Tensor:
    """A direct call of the UNet, as in diffusers' pipelines."""
    added = {"text_embeds": conditioning.pooled, "time_ids": conditioning.time_ids}
    whole = latents if conditioning.concat is None else torch.cat([latents, conditioning.concat], dim=1)
    output: Tensor = unet(
        whole,
        timesteps,
        encoder_hidden_states=conditioning.prompt_embeds,
        class_labels=conditioning.class_labels,
        added_cond_kwargs=added if conditioning.time_ids is not None else None,
        return_dict=False,
    )[0]
    return output


@pytest.mark.parametrize("name", CASES)
def test_the_denoiser_equals_diffusers_call(name: str) -> None:
    shape, conditioning, _ = CASES[name]
    unet, latents, timesteps = make_unet(**shape), normal(2, 4, 8, 8, seed=7), torch.tensor([3, 800])
    found = UNetDenoiser(unet)(latents, timesteps, conditioning)
    assert torch.equal(found, call(unet, latents, timesteps, conditioning))


@pytest.mark.parametrize("sampler", ["ddim", "euler", "dpmpp_2m"])
@pytest.mark.parametrize("name", CASES)
def test_sampling_with_guidance_equals_diffusers_loop(name: str, sampler: str) -> None:
    shape, prompt, negative = CASES[name]
    unet, noise = make_unet(**shape), normal(2, 4, 8, 8, seed=7)
    plan = plan_sampling(make_scheduler(sampler, SD1_SCHEDULER), 4)
    guided = guide_with_negative(UNetDenoiser(unet), negative, 5.0)
    (*_, (_, found)) = denoise(guided, plan, noise, prompt)
    scheduler = plan.scheduler()
    latents, both = noise * scheduler.init_noise_sigma, Conditioning.cat([negative, prompt])
    for t in scheduler.timesteps:
        # concatenated after the scaling: the masks and images are not noise
        output = call(unet, scheduler.scale_model_input(torch.cat([latents] * 2), t), t, both)
        uncond, cond = output.chunk(2)
        latents = scheduler.step(uncond + 5.0 * (cond - uncond), t, latents, return_dict=False)[0]
    torch.testing.assert_close(found, latents, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_each_input_matters(name: str) -> None:
    shape, conditioning, _ = CASES[name]
    denoiser, latents = UNetDenoiser(make_unet(**shape)), normal(2, 4, 8, 8, seed=7)
    before = denoiser(latents, torch.tensor([3, 800]), conditioning)
    for field in ("prompt_embeds", "concat", "class_labels", "pooled", "time_ids"):
        value = getattr(conditioning, field)
        if value is not None:
            changed = Conditioning(**{**vars(conditioning), field: value + 1})
            assert not torch.equal(denoiser(latents, torch.tensor([3, 800]), changed), before), field


@pytest.mark.parametrize("name", CASES)
def test_the_noise_has_the_latents_channels(name: str) -> None:
    shape, conditioning, _ = CASES[name]
    denoiser = UNetDenoiser(make_unet(**shape))
    extra = 0 if conditioning.concat is None else conditioning.concat.shape[1]
    assert (denoiser.latent_channels, denoiser.concat_channels) == (4, extra)
    assert denoiser.input_channels == 4 + extra
    assert denoiser.needs_more_than_text


@pytest.mark.parametrize("width", [16, 17])
def test_the_guidance_scale_is_told_as_diffusers_does(width: int) -> None:
    """Also where deep features are reused; a UNet without the embedding ignores the scale."""
    unet, latents, timesteps = (
        make_unet(time_cond_proj_dim=width),
        normal(2, 4, 8, 8, seed=7),
        torch.tensor([3, 800]),
    )
    scales = torch.tensor([7.3, 2.0])
    told = replace(inputs(2, 1), guidance_scale=scales)
    embedded = StableDiffusionPipeline.get_guidance_scale_embedding(None, scales - 1, embedding_dim=width)
    expected = unet(latents, timesteps, told.prompt_embeds, timestep_cond=embedded, return_dict=False)[0]
    denoiser = UNetDenoiser(unet)
    assert denoiser.embeds_guidance and not denoiser.needs_more_than_text
    torch.testing.assert_close(denoiser(latents, timesteps, told), expected)
    torch.testing.assert_close(SplitUNet(unet).full(latents, timesteps, told)[0], expected)
    other = replace(told, guidance_scale=scales + 1)
    assert not torch.allclose(denoiser(latents, timesteps, other), expected)
    plain = UNetDenoiser(make_unet())
    assert torch.equal(plain(latents, timesteps, told), plain(latents, timesteps, inputs(2, 1)))


def test_a_new_guidance_embedding_changes_nothing_at_first() -> None:
    unet, latents, timesteps = make_unet(), normal(2, 4, 8, 8, seed=7), torch.tensor([3, 800])
    told = replace(inputs(2, 1), guidance_scale=torch.tensor([7.3, 2.0]))
    before = UNetDenoiser(unet)(latents, timesteps, told)
    add_guidance_embedding(unet)
    assert UNetDenoiser(unet).embeds_guidance
    assert torch.equal(UNetDenoiser(unet)(latents, timesteps, told), before)


def test_a_learned_variance_does_not_change_the_latent_channels() -> None:
    denoiser = UNetDenoiser(make_unet(out_channels=8), latent_channels=4)
    assert (denoiser.latent_channels, denoiser.concat_channels) == (4, 0)


@pytest.mark.parametrize("name", CASES)
def test_deep_features_are_cut_with_the_same_inputs(name: str) -> None:
    shape, conditioning, _ = CASES[name]
    unet, latents, timesteps = make_unet(**shape), normal(2, 4, 8, 8, seed=7), torch.tensor([3, 800])
    whole = call(unet, latents, timesteps, conditioning)
    output, deep = SplitUNet(unet).full(latents, timesteps, conditioning)
    assert torch.equal(output, whole)
    assert torch.equal(SplitUNet(unet).shallow(latents, timesteps, conditioning, deep), whole)


def test_control_signals_reach_the_unet() -> None:
    unet = make_unet()
    control = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(4, 8))
    for parameter in control.parameters():
        parameter.data += 0.05
    latents, timesteps, prompt = normal(2, 4, 8, 8, seed=7), torch.tensor([3, 800]), inputs(2, 1)
    hint = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        down, middle = control(latents, timesteps, prompt.prompt_embeds, hint, return_dict=False)
        expected = unet(
            latents, timesteps, prompt.prompt_embeds, down_block_additional_residuals=tuple(down),
            mid_block_additional_residual=middle, return_dict=False,
        )[0]  # fmt: skip
    told = Conditioning(prompt.prompt_embeds, down_residuals=tuple(down), mid_residual=middle)
    found = UNetDenoiser(unet)(latents, timesteps, told)
    assert torch.equal(found, expected)
    assert not torch.equal(found, UNetDenoiser(unet)(latents, timesteps, prompt))
    with pytest.raises(UserError, match="control signals or image prompts: set deep_features_every to 1"):
        SplitUNet(unet).full(latents, timesteps, told)


@pytest.mark.parametrize(
    ("key", "changes"),
    [
        ("class_embed_type", {"class_embed_type": "projection", "projection_class_embeddings_input_dim": 8}),
    ],
)
def test_unsupported_inputs_are_rejected(key: str, changes: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=rf"unet/config.json has {key}"):
        UNetDenoiser(make_unet(**changes))

"""Reuse of deep features: when they are computed, equality of the two passes with the UNet, and no leaks."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from ldm.diffusion.guidance import guide_with_negative
from ldm.diffusion.sampling import denoise, plan_sampling
from ldm.diffusion.schedulers import make_scheduler
from ldm.errors import UserError
from ldm.models.engines.feature_reuse import FeatureReuse, SplitUNet, reuse_deep_features
from ldm.models.loading.model import ModelParts
from ldm.models.unet import UNetDenoiser
from ldm.pipeline.pipeline import Pipeline
from ldm.types import Conditioning, Denoiser, Step
from tests.support.tiny_models import SD1_SCHEDULER, make_sd1, make_sd2

MODELS: dict[str, Callable[[Path], ModelParts]] = {"epsilon": make_sd1, "v": make_sd2}


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def make_unet(**changes: Any) -> UNet2DConditionModel:
    """Three levels, with attention at the outermost one as in Stable Diffusion, and random weights."""
    torch.manual_seed(0)
    settings: dict[str, Any] = {
        "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        "block_out_channels": (8, 16, 16),
        "layers_per_block": 2,
        "norm_num_groups": 4,
        "cross_attention_dim": 32,
        "attention_head_dim": 2,
    }
    return UNet2DConditionModel(**{**settings, **changes}).eval().requires_grad_(False)


@pytest.fixture(scope="module", params=MODELS)
def parts(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ModelParts:
    return MODELS[request.param](tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def denoiser() -> UNetDenoiser:
    return UNetDenoiser(make_unet())


def embeds(num_rows: int = 2, seed: int = 5) -> Conditioning:
    return Conditioning(normal(num_rows, 6, 32, seed=seed))


def sample(
    denoiser: Denoiser, num_inference_steps: int = 6, seed: int = 0, scheduler: str = "ddim"
) -> Tensor:
    """The final latents [2, 4, 8, 8]."""
    steps = denoise(
        denoiser,
        plan_sampling(make_scheduler(scheduler, SD1_SCHEDULER), num_inference_steps),
        normal(2, 4, 8, 8, seed=seed),
        embeds(seed=seed),
    )
    return list(steps)[-1][1]


# The two passes equal the UNet


@pytest.mark.parametrize("num_fresh", [1, 2, 3])
@pytest.mark.parametrize("size", [(8, 8), (9, 7)])
def test_the_full_pass_equals_the_unet(denoiser: UNetDenoiser, num_fresh: int, size: tuple[int, int]) -> None:
    latents, timesteps = normal(2, 4, *size), torch.tensor([3, 800])
    split = SplitUNet(denoiser.unet, num_fresh)
    output, deep = split.full(latents, timesteps, embeds())
    torch.testing.assert_close(output, denoiser(latents, timesteps, embeds()), rtol=0, atol=1e-5)
    assert torch.equal(split.shallow(latents, timesteps, embeds(), deep), output)


@pytest.mark.parametrize(
    "changes",
    [
        {"mid_block_type": None},
        {"time_embedding_act_fn": "silu", "center_input_sample": True},
        {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",), "block_out_channels": (8,)},
        {"only_cross_attention": True, "layers_per_block": 1, "use_linear_projection": True},
    ],
)
def test_the_full_pass_equals_other_unets(changes: dict[str, Any]) -> None:
    denoiser = UNetDenoiser(make_unet(**changes))
    latents, timesteps = normal(2, 4, 8, 8), torch.tensor([3, 800])
    output, _ = SplitUNet(denoiser.unet, 2).full(latents, timesteps, embeds())
    torch.testing.assert_close(output, denoiser(latents, timesteps, embeds()), rtol=0, atol=1e-5)


def test_the_passes_attend_where_the_mask_allows_in_the_unets_dtype() -> None:
    denoiser = UNetDenoiser(make_unet().to(torch.bfloat16))
    masked = Conditioning(embeds().prompt_embeds, attention_mask=torch.tensor([[1] * 4 + [0] * 2] * 2))
    given = normal(2, 4, 8, 8), torch.tensor([3, 800])
    output, deep = SplitUNet(denoiser.unet).full(*given, masked)
    assert (output.dtype, deep.dtype) == (torch.float32, torch.bfloat16)
    assert torch.equal(output, denoiser(*given, masked))
    assert not torch.equal(output, denoiser(*given, embeds()))


def test_the_shallow_pass_sees_the_latents_and_the_timestep(denoiser: UNetDenoiser) -> None:
    split, latents, timesteps = SplitUNet(denoiser.unet), normal(2, 4, 8, 8), torch.tensor([800, 800])
    output, deep = split.full(latents, timesteps, embeds())
    for changed in ((latents + 0.1, timesteps), (latents, timesteps - 100)):
        assert not torch.equal(split.shallow(*changed, embeds(), deep), output)


def test_with_every_step_it_is_the_denoiser_itself(denoiser: UNetDenoiser) -> None:
    assert reuse_deep_features(denoiser, 1) is denoiser
    always = FeatureReuse(SplitUNet(denoiser.unet), 1)
    torch.testing.assert_close(sample(always), sample(denoiser), rtol=0, atol=1e-4)


# When features are computed


class Counter:
    """Records the number of rows in each call of a network's module."""

    def __init__(self, module: Any) -> None:
        self.rows: list[int] = []
        self._hook = module.register_forward_pre_hook(
            lambda module, args, kwargs: self.rows.append(len(args[0] if args else kwargs["hidden_states"])),
            with_kwargs=True,
        )

    def close(self) -> list[int]:
        self._hook.remove()
        return self.rows


@pytest.mark.parametrize(("every", "num_deep"), [(2, 4), (3, 3), (100, 1)])
def test_the_deep_levels_work_at_every_nth_step(denoiser: UNetDenoiser, every: int, num_deep: int) -> None:
    deep, fresh = Counter(denoiser.unet.mid_block), Counter(denoiser.unet.conv_out)
    sample(reuse_deep_features(denoiser, every), num_inference_steps=7)
    assert (deep.close(), fresh.close()) == ([2] * num_deep, [2] * 7)


def test_deep_features_are_recomputed_when_guidance_ends(denoiser: UNetDenoiser) -> None:
    deep, fresh = Counter(denoiser.unet.mid_block), Counter(denoiser.unet.conv_out)
    reusing = reuse_deep_features(denoiser, 3)
    sample(guide_with_negative(reusing, embeds(1), 3.0, interval=(0.25, 0.75)), num_inference_steps=8)
    assert fresh.close() == [2, 2, 4, 4, 4, 4, 2, 2]
    assert deep.close() == [2, 4, 4, 2]  # before steps 0, 2, 5 and 6


# Nothing leaks


def test_sampling_runs_do_not_share_features(denoiser: UNetDenoiser) -> None:
    def fresh() -> Denoiser:
        return reuse_deep_features(denoiser, 4)

    expected = [sample(fresh(), seed=seed) for seed in (0, 1)]
    same = fresh()
    again = [sample(same, seed=seed) for seed in (0, 1, 0)]
    assert torch.equal(again[0], expected[0])
    assert torch.equal(again[1], expected[1])
    assert torch.equal(again[2], expected[0])


@pytest.mark.parametrize(
    "between",
    [
        lambda call: call(Step(9, 9, 3.0, 0.1)),  # from another sampling run, or after a skipped call
        lambda call: call(Step(0, 0, 900.0, 5.0)),  # another sampling run starts
        lambda call: call(None),
        lambda call: call(Step(1, 1, 800.0, 4.0), rows=1),
        lambda call: call(Step(1, 1, 800.0, 4.0), size=4),
    ],
)
def test_features_of_another_call_are_not_reused(denoiser: UNetDenoiser, between: Callable[..., Any]) -> None:
    reusing = reuse_deep_features(denoiser, 100)

    def call(step: Step | None, rows: int = 2, size: int = 8) -> Tensor:
        output: Tensor = reusing(
            normal(rows, 4, size, size), torch.full((rows,), 500), embeds(rows, seed=1), step=step
        )
        return output

    reusing(normal(2, 4, 8, 8, seed=3), torch.tensor([900, 900]), embeds(), step=Step(0, 0, 900.0, 5.0))
    counter = Counter(denoiser.unet.mid_block)
    output = between(call)
    expected = SplitUNet(denoiser.unet).full(
        normal(*output.shape), torch.full((len(output),), 500), embeds(len(output), seed=1)
    )[0]
    assert len(counter.close()) == 2
    assert torch.equal(output, expected)


def test_an_image_is_the_same_alone_and_in_a_batch(parts: ModelParts) -> None:
    pipeline = Pipeline(parts)
    settings: dict[str, Any] = {
        "deep_features_every": 2,
        "guidance_interval": (0.0, 0.5),
        "guidance_scale": 3,
    }
    prompts = ["a red apple", "the blue square", ""]
    together = pipeline.generate(prompts, seeds=[4, 5, 6], **settings).latents
    for index in (2, 0, 1):
        alone = pipeline.generate(prompts[index], seed=4 + index, **settings).latents
        torch.testing.assert_close(alone[0], together[index], rtol=0, atol=1e-4)
        plain = pipeline.generate(prompts[index], seed=4 + index, guidance_scale=3).latents
        assert (plain - alone).abs().max() > 1e-3


def test_two_calls_for_a_step_are_counted_as_two(denoiser: UNetDenoiser) -> None:
    counter = Counter(denoiser.unet.mid_block)
    sample(reuse_deep_features(denoiser, 2), num_inference_steps=4, scheduler="heun")
    assert len(counter.close()) == 4  # of 7 calls


# Errors


def test_a_unet_with_other_blocks_is_rejected() -> None:
    unet = make_unet(
        down_block_types=("SimpleCrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        block_out_channels=(8, 16),
    )
    with pytest.raises(UserError, match="with a SimpleCrossAttnDownBlock2D: set deep_features_every to 1"):
        reuse_deep_features(UNetDenoiser(unet), 2)


class WholeEngine:
    """An engine without passes."""

    passes = None

    def __call__(
        self, latents: Tensor, timesteps: Tensor, conditioning: Conditioning, *, step: Step | None = None
    ) -> Tensor:
        return latents


def test_an_engine_without_passes_is_rejected() -> None:
    engine = WholeEngine()
    assert reuse_deep_features(engine, 1) is engine
    with pytest.raises(
        UserError, match="without support for reusing deep features: set deep_features_every to 1"
    ):
        reuse_deep_features(engine, 2)

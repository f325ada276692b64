"""Guidance in a part of the sampling: where it applies, its cost, and equality with plain guidance everywhere."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ldm.diffusion.guidance import guide_with_negative, within
from ldm.diffusion.interval import Interval, check_interval
from ldm.diffusion.sampling import denoise, plan_sampling
from ldm.diffusion.scheduler_names import SCHEDULERS
from ldm.diffusion.schedulers import make_scheduler
from ldm.errors import UserError
from ldm.export.verify.trial import trial_for, trial_outputs
from ldm.pipeline.pipeline import Pipeline, load_pipeline
from ldm.types import Conditioning, Step
from tests.support.tiny_models import SD1_SCHEDULER, ZERO_SNR_SCHEDULER, make_sd1

AVAILABLE = [name for name, entry in SCHEDULERS.items() if entry.available]
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept context:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Should have t[ab][<>]=t[01] but got:UserWarning"),
]


def embeds(*values: float) -> Conditioning:
    return Conditioning(torch.tensor(values).view(-1, 1, 1))


class CountedDenoiser:
    """Returns a tenth of the latents times the prompt's number; records the rows and the step of each call."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, Step]] = []

    def __call__(
        self, latents: Tensor, timesteps: Tensor, conditioning: Conditioning, *, step: Step | None = None
    ) -> Tensor:
        assert len(latents) == len(timesteps) == len(conditioning)
        assert step is not None
        self.calls.append((len(latents), step))
        return 0.1 * latents * conditioning.prompt_embeds.view(-1, 1, 1, 1)

    @property
    def rows(self) -> list[int]:
        return [rows for rows, _ in self.calls]


def sample(
    interval: Interval,
    num_inference_steps: int = 10,
    name: str = "ddim",
    config: Any = SD1_SCHEDULER,
    **plain: Any,
) -> tuple[Tensor, CountedDenoiser]:
    """The final latents of two images, and the denoiser's recorded calls."""
    denoiser = CountedDenoiser()
    steps = denoise(
        guide_with_negative(denoiser, embeds(2.0), 4.0, interval=interval, **plain),
        plan_sampling(make_scheduler(name, config), num_inference_steps),
        torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(0)),
        embeds(3.0, 1.0),
        generators=[torch.Generator().manual_seed(seed) for seed in (1, 2)],
    )
    return list(steps)[-1][1], denoiser


@pytest.mark.parametrize("everything", [(0.0, 1.0), (1e9, 0.0)])
@pytest.mark.parametrize("rescale", [0.0, 0.7])
def test_the_whole_interval_equals_plain_guidance(everything: Interval, rescale: float) -> None:
    denoiser = CountedDenoiser()
    plain = list(
        denoise(
            guide_with_negative(denoiser, embeds(2.0), 4.0, rescale),
            plan_sampling(make_scheduler("ddim", SD1_SCHEDULER), 10),
            torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(0)),
            embeds(3.0, 1.0),
        )
    )[-1][1]
    latents, counted = sample(everything, guidance_rescale=rescale)
    assert torch.equal(latents, plain)
    assert counted.rows == denoiser.rows == [4] * 10


@pytest.mark.parametrize(
    ("interval", "guided"),
    [
        ((0.0, 0.5), range(5)),
        ((0.5, 1.0), range(5, 10)),
        ((0.3, 0.7), range(3, 7)),
        ((0.25, 0.31), [3]),
        ((0.41, 0.49), []),
        ((0.0, 0.01), [0]),
    ],
)
def test_outside_it_half_the_rows_are_computed(interval: Interval, guided: Any) -> None:
    _, counted = sample(interval)
    assert counted.rows == [4 if index in guided else 2 for index in range(10)]


def test_outside_it_the_prediction_is_the_prompts() -> None:
    denoiser = CountedDenoiser()
    guided = guide_with_negative(denoiser, embeds(2.0), 4.0, interval=(0.0, 0.5))
    latents, timesteps = torch.ones(2, 4, 4, 4), torch.tensor([500, 500])
    outside = guided(latents, timesteps, embeds(3.0, 1.0), step=Step(5, 5, 500.0, 1.0, 0.5))
    inside = guided(latents, timesteps, embeds(3.0, 1.0), step=Step(4, 4, 500.0, 1.0, 0.4))
    torch.testing.assert_close(outside[:, 0, 0, 0], torch.tensor([0.3, 0.1]))
    torch.testing.assert_close(inside[:, 0, 0, 0], 0.1 * torch.tensor([2 + 4.0 * (3 - 2), 2 + 4.0 * (1 - 2)]))


def test_noise_levels_are_those_of_the_steps() -> None:
    _, counted = sample((5.0, 0.3), num_inference_steps=20)
    assert [rows for rows, _ in counted.calls] == [4 if 0.3 < s.sigma <= 5.0 else 2 for _, s in counted.calls]
    assert counted.rows[0] == counted.rows[-1] == 2
    assert 4 in counted.rows


def test_the_bounds_of_noise_levels() -> None:
    def step(sigma: float) -> Step:
        return Step(0, 0, 0.0, sigma)

    assert [within(step(sigma), (5.0, 0.3)) for sigma in (5.1, 5.0, 0.31, 0.3)] == [False, True, True, False]


def test_noise_levels_without_any_signal() -> None:
    _, counted = sample((1e9, 1.0), 5, config=ZERO_SNR_SCHEDULER)
    assert counted.rows[0] == 4
    assert counted.calls[0][1].sigma > 1e5


@pytest.mark.parametrize("name", AVAILABLE)
def test_every_sampler_respects_it(name: str) -> None:
    latents, counted = sample((0.25, 0.75), 4, name)
    assert latents.isfinite().all()
    assert [(rows, step.index in (1, 2)) for rows, step in counted.calls] == [
        (4, True) if 0.25 <= step.fraction < 0.75 else (2, False) for _, step in counted.calls
    ]
    assert set(counted.rows) == {2, 4}


@pytest.mark.parametrize("name", ["ddim", "heun", "pndm", "dpmpp_2s"])
def test_fractions_are_of_the_steps(name: str) -> None:
    steps = plan_sampling(make_scheduler(name, SD1_SCHEDULER), 5).steps
    count = steps[-1].index + 1
    assert [step.fraction for step in steps] == [step.index / count for step in steps]
    assert steps[0].fraction == 0


@pytest.mark.parametrize(
    "interval",
    [
        (0.5, 0.5),
        (0.3, 5.0),
        (-0.1, 0.5),
        (float("nan"), 0.5),
        (0.1, float("nan")),
        (float("inf"), 1.0),
        (0.0, float("inf")),
    ],
)
def test_invalid_intervals_are_rejected(interval: Interval) -> None:
    with pytest.raises(UserError, match=r"guidance_interval is .* increasing .* up to 1 .* decreasing"):
        check_interval(interval)


@pytest.mark.parametrize("interval", [(0.0, 1.0), (0.2, 0.3), (14.6, 0.0), (0.9, 0.2)])
def test_valid_intervals_are_accepted(interval: Interval) -> None:
    check_interval(interval)


def test_the_default_is_the_models_interval(tmp_path: Path) -> None:
    parts = make_sd1(tmp_path)
    half = replace(parts, defaults=parts.defaults.model_copy(update={"guidance_interval": (0.0, 0.5)}))
    Pipeline(half).save(tmp_path / "model")
    pipeline = load_pipeline(str(tmp_path / "model"))
    everything = pipeline.generate("a red apple", seed=1, guidance_interval=(0.0, 1.0))
    own = pipeline.generate("a red apple", seed=1)
    assert own.settings[0]["guidance_interval"] == [0.0, 0.5]
    assert torch.equal(
        own.latents, pipeline.generate("a red apple", seed=1, guidance_interval=(0.0, 0.5)).latents
    )
    assert not torch.allclose(own.latents, everything.latents)


def test_an_export_is_compared_as_a_stock_pipeline_guides(tmp_path: Path) -> None:
    parts = make_sd1(tmp_path)
    trial = trial_for(parts)
    plain = trial_outputs(parts, trial)["pixels"]
    parts.defaults = parts.defaults.model_copy(update={"guidance_interval": (0.0, 0.5)})
    assert torch.equal(trial_outputs(parts, trial)["pixels"], plain)


def test_the_network_is_called_with_half_the_rows_in_any_batch(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    pipeline = Pipeline(make_sd1(tmp_path_factory.mktemp("tokenizer")))
    prompts, rows = ["a red apple", "the blue square", ""], []
    hook = pipeline.denoiser.unet.conv_in.register_forward_pre_hook(
        lambda module, args: rows.append(len(args[0]))
    )
    settings: dict[str, Any] = {"guidance_interval": (0.0, 0.5), "guidance_scale": 6.0, "scheduler": "ddim"}
    together = pipeline.generate(prompts, seeds=[4, 5, 6], **settings)
    hook.remove()
    assert rows == [6, 6, 3, 3]
    assert [settings["guidance_interval"] for settings in together.settings] == [[0.0, 0.5]] * 3
    for index, prompt in enumerate(prompts):
        alone = pipeline.generate(prompt, seed=4 + index, **settings).latents
        torch.testing.assert_close(alone[0], together.latents[index], rtol=0, atol=1e-4)

"""Whatever is trained, the micro-batch changes only the rounding: in float64 the weights agree to a billionth.

In float32 the same runs differ by some 1e-6 to 1e-4 of the way that the weights went: AdamW moves a weight whose
gradient is nearly zero as far as any other, in the direction that rounding gives it.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

from ldm.config import validate
from ldm.diffusion.path import DDPMPath, ScheduleSettings
from ldm.models.dropout import KeyedDropout
from tests.support.slow_cases import rest_slow
from tests.support.tiny_models import make_sd1, make_sd2
from tests.support.tiny_runs import COMMON
from train.loop.denoiser_loss import DenoiserLoss
from train.loop.optim import make_optimizer
from train.loop.steps import Batch, accumulate_gradients
from train.run.trainable import choose_trained
from train.settings.denoiser import DenoiserSettings

CAPTIONS = ["a red apple", "square", "the large blue", "", "table"]
LORA = {"trainable": "lora", "lora": {"rank": 2, "target_modules": "all"}}
TRAINED: dict[str, dict[str, Any]] = {
    "unet": {"trainable": "unet"},
    "unet+text_encoder": {"trainable": "unet+text_encoder"},
    "embedding": {"trainable": "embedding", "embedding": {"token": "<cat>", "initial_word": "apple"}},
    **{
        f"{'dora' if dora else 'lora'}, dropout {dropout}, text encoder {text}": {
            "trainable": "lora",
            "lora": {**LORA["lora"], "use_dora": dora, "dropout": dropout, "text_encoder": text},  # type: ignore[dict-item]
        }
        for dora in (False, True)
        for dropout in (0.0, 0.2)
        for text in (False, True)
    },
}


def make_loss(folder: Path, trained: dict[str, Any], *, dropout: float = 0.0) -> DenoiserLoss:
    """A tiny model in float64; `dropout` is what the UNet has in its own configuration."""
    parts = (make_sd2 if "dora" in str(trained) else make_sd1)(folder)
    for name, layer in parts.denoiser.unet.named_modules():
        if dropout and type(layer) is torch.nn.Dropout:
            parts.denoiser.unet.set_submodule(name, torch.nn.Dropout(dropout))
    run = {"program": "denoiser", "base": "emoji", "run_dir": str(folder / "run"), "data": {"path": "data"}}
    settings = validate(DenoiserSettings, {**COMMON, **run, **trained})
    groups = choose_trained(parts, settings, seed=0, learning_rate=3e-3)
    loss = DenoiserLoss(parts, settings, DDPMPath(ScheduleSettings()), groups).train()
    parts.text_encoder.double()
    return loss.double()


def batch(step: int, size: int) -> Batch:
    generator = torch.Generator().manual_seed(step)
    normal = torch.randn(size, 3, 4, 8, 8, generator=generator)
    moments = torch.cat([normal[:, 0], torch.full_like(normal[:, 0], -3.0)], dim=1)
    return {
        "moments": moments.double(),
        "posterior_noise": normal[:, 1].double(),
        "noise": normal[:, 2],  # its bits are the keys of the dropout
        "position": torch.rand(size, generator=generator).double(),
        "caption": CAPTIONS[:size],
        "loss_weight": torch.ones(size).double(),
        "weight": torch.ones(size).double(),
        "sample_id": [str(row) for row in range(size)],
    }


def trained_weights(loss: DenoiserLoss) -> Tensor:
    return torch.cat([p.detach().flatten() for p in loss.parameters() if p.requires_grad])


def train(loss: DenoiserLoss, micro_batch: int) -> tuple[Tensor, Tensor]:
    """The trained weights before and after two steps, the second on a ragged batch of two."""
    optimizer, start = make_optimizer(loss, loss.settings.optim), trained_weights(loss)
    for step, size in enumerate((5, 2)):
        sample = batch(step, size)
        accumulate_gradients(loss, sample, Accelerator(cpu=True), micro_batch)
        optimizer.step()
        optimizer.zero_grad()
    return start, trained_weights(loss)


def assert_same(folder: Path, trained: dict[str, Any], **options: Any) -> None:
    start, whole = train(make_loss(folder / "5", trained, **options), 5)
    for size in (1, 3):
        _, split = train(make_loss(folder / str(size), trained, **options), size)
        assert (split - whole).norm() <= 1e-9 * (whole - start).norm()


HARDEST = "dora, dropout 0.2, text encoder True"


@pytest.mark.parametrize("name", rest_slow(TRAINED, "unet", HARDEST))
def test_the_micro_batch_changes_only_the_rounding(tmp_path: Path, name: str) -> None:
    assert_same(tmp_path, TRAINED[name])


@pytest.mark.parametrize(
    "name",
    rest_slow(["unet", HARDEST], HARDEST),
)
def test_nor_does_it_if_the_model_has_dropout_of_its_own(tmp_path: Path, name: str) -> None:
    assert_same(tmp_path, TRAINED[name], dropout=0.3)
    loss = make_loss(tmp_path / "count", TRAINED[name], dropout=0.3)
    found = [layer for layer in loss.denoiser.modules() if isinstance(layer, KeyedDropout)]
    assert found and all(0.0 < layer.share < 1.0 for layer in found)

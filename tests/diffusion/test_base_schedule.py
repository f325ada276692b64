"""A base is trained on exactly the path that it is sampled on, or rejected."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from ldm.config import validate
from ldm.diffusion.schedulers import make_scheduler
from ldm.errors import UserError
from ldm.models.loading.model import load_parts, save_parts
from tests.support.tiny_models import SD1_SCHEDULER, SD2_SCHEDULER, ZERO_SNR_SCHEDULER, make_sd1
from train.run.denoiser_model import make_loss, path_of
from train.settings.denoiser import DenoiserSettings

BARE = {"_class_name": "PNDMScheduler"}
STOCK: dict[str, dict[str, Any]] = {
    "empty config": BARE,
    "no betas": {key: v for key, v in SD1_SCHEDULER.items() if not key.startswith("beta")},
    "no levels": {key: v for key, v in SD2_SCHEDULER.items() if key != "num_train_timesteps"},
    "Stable Diffusion 1": SD1_SCHEDULER,
    "Stable Diffusion 2": SD2_SCHEDULER,
    "zero SNR": ZERO_SNR_SCHEDULER,
    "cosine of 200 levels": {**BARE, "beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 200},
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    save_parts(make_sd1(folder / "tokenizer"), folder / "model")
    return folder / "model"


def settings_of(base: Path, config: dict[str, Any]) -> DenoiserSettings:
    """Task of a fine-tuning run whose base has this scheduler config."""
    (base / "scheduler/scheduler_config.json").write_text(json.dumps(config))
    tree = {"program": "denoiser", "run_dir": str(base / "run"), "num_steps": 1, "base": str(base)}
    return validate(
        DenoiserSettings,
        {**tree, "trainable": "unet", "data": {"path": "x"}, "optim": {"num_warmup_steps": 0}},
    )


@pytest.mark.parametrize("name", STOCK)
@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "dpmpp_2m", "euler", "unipc"])
def test_training_and_sampling_use_the_same_path(base: Path, name: str, sampler: str) -> None:
    config = STOCK[name]
    parts = load_parts(base)
    parts.scheduler_config = config
    schedule = path_of(settings_of(base, config), parts)
    theirs = make_scheduler(sampler, config)
    if config is ZERO_SNR_SCHEDULER:  # some samplers use a level of 2^-24 instead of zero
        assert torch.allclose(schedule.alphas_cumprod, theirs.alphas_cumprod, rtol=0, atol=1e-7)
    else:
        assert torch.equal(schedule.alphas_cumprod, theirs.alphas_cumprod)
    assert schedule.settings.prediction_type == theirs.config.prediction_type


def test_the_path_of_a_base_reaches_the_task(base: Path) -> None:
    schedule = make_loss(settings_of(base, ZERO_SNR_SCHEDULER)).path
    assert schedule.settings.prediction_type == "v_prediction"
    assert schedule.alphas_cumprod[-1] == 0
    assert make_loss(settings_of(base, SD1_SCHEDULER)).path.settings.prediction_type == "epsilon"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("trained_betas", [0.02] * 1000),
        ("beta_schedule", "sigmoid"),
        ("prediction_type", "flow_prediction"),
        ("rescale_betas_zero_snr", True),
        ("num_train_timesteps", 1),
        ("beta_start", None),
    ],
)
def test_a_path_unsupported_in_training_is_rejected(base: Path, key: str, value: Any) -> None:
    settings = settings_of(base, {**SD1_SCHEDULER, key: value})
    with pytest.raises(UserError, match=rf"model: scheduler/scheduler_config\.json.*{key}") as refusal:
        make_loss(settings)
    assert "\n" not in str(refusal.value)

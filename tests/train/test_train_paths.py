"""Runs on paths other than DDPM's: training from scratch, resuming, and what a stock pipeline makes of the result."""

import json
import math
import signal
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file

from ldm.config import load_settings
from ldm.diffusion.edm import EDMPath
from ldm.export.card.facts import scheduler_change
from ldm.export.verify.readers import trial_outputs as read_trial
from ldm.export.verify.trial import largest_difference, trial_for, trial_inputs, trial_outputs
from ldm.models.loading.model import load_parts, save_parts
from tests.support.slow_cases import rest_slow
from tests.support.tiny_models import make_sd1
from tests.support.tiny_runs import DENOISER, write_config, write_squares
from train import denoiser
from train.data.latents import ImageReaders, measured_deviation
from train.run.denoiser_model import path_of
from train.run.from_checkpoint import write_model

CHANGES: dict[str, dict[str, Any]] = {
    "flow": {
        "path": "flow",
        "flow": {"shift": 2.0},
        "objective": {"timestep_distribution": "logit_normal", "timestep_shift": 2.0},
    },
    "flow x_0": {"path": "flow", "flow": {"prediction_type": "sample"}},
    "edm": {"path": "edm"},
    "vp": {"path": "vp", "objective": {"weighting": "min_snr"}},
    "ve": {"path": "ve", "ve": {"sigma_max": 30.0}},
    "learned variance": {
        "schedule": {"learn_variance": True, "num_train_timesteps": 20},
        "objective": {"timestep_distribution": "loss_aware"},
    },
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, and a tiny model whose autoencoder and text encoder the runs take."""
    folder = tmp_path_factory.mktemp("paths")
    write_squares(folder / "data")
    save_parts(make_sd1(folder / "tokenizer"), folder / "model")
    return folder


def make_config(folder: Path, name: str, **changes: Any) -> Path:
    model = str(folder / "model")
    tree = {"trainable": "unet", "num_steps": 3, "parts": {"autoencoder": model, "text_encoder": model}}
    changes = {**tree, "cache": {"folder": str(folder / "cache")}, "save_every": 2, **changes}
    return write_config(folder / f"{name}.yaml", DENOISER, folder / "data", folder / name, **changes)


def newest(run_dir: Path) -> Path:
    return sorted((run_dir / "checkpoints").iterdir())[-1]


def scheduler_config(model: Path) -> Any:
    return json.loads((model / "scheduler/scheduler_config.json").read_text())


@pytest.mark.parametrize("name", rest_slow(CHANGES, "flow", "edm", "ve", "learned variance"))
def test_a_run_resumes_exactly_and_a_stock_pipeline_makes_its_images(
    folder: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, broken = f"{name} whole", f"{name} broken"
    assert denoiser.main([str(make_config(folder, whole, **CHANGES[name]))]) == 0

    config = make_config(folder, broken, preview_every=2, **CHANGES[name])
    with monkeypatch.context() as patch:
        patch.setattr(denoiser, "write_preview", lambda *args, **options: signal.raise_signal(signal.SIGTERM))
        assert denoiser.main([str(config)]) == 128 + signal.SIGTERM
    assert denoiser.main([str(config)]) == 0
    for file in ("weights", "average", "optimizer"):
        left, right = (load_file(newest(folder / run) / f"{file}.safetensors") for run in (whole, broken))
        assert left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)
    one, other = (json.loads((newest(folder / run) / "state.json").read_text()) for run in (whole, broken))
    assert one.get("module") == other.get("module")
    pipeline = folder / whole / "pipeline"
    assert scheduler_config(pipeline) == scheduler_config(folder / broken / "pipeline")

    parts = load_parts(pipeline)
    trial = trial_for(parts)
    save_file(trial_inputs(parts, trial), folder / "inputs")
    stock = StableDiffusionPipeline.from_pretrained(pipeline, safety_checker=None)
    theirs = read_trial(stock, {"trial": asdict(trial), "inputs": str(folder / "inputs")})
    assert largest_difference(trial_outputs(parts, trial), theirs) <= 1

    write_model(newest(folder / whole), folder / f"{name} exported")
    assert scheduler_config(folder / f"{name} exported") == scheduler_config(pipeline)


def test_the_deviation_of_the_latents_is_measured_and_kept(folder: Path) -> None:
    """Further training, and a run from the finished model, use the number that was measured first."""
    pipeline = folder / "edm whole" / "pipeline"
    measured = scheduler_config(pipeline)["sigma_data"]
    assert measured not in (0.5, 1.0)
    state = json.loads((newest(folder / "edm whole") / "state.json").read_text())
    assert state["module"] == {"sigma_data": measured}
    config = make_config(folder, "further", base=str(pipeline), model={}, parts=None)
    settings = load_settings(denoiser.DenoiserSettings, config)
    path = path_of(settings, load_parts(pipeline))
    assert isinstance(path, EDMPath) and path.sigma_data == measured


def test_the_losses_of_all_samples_are_remembered(folder: Path) -> None:
    """Three steps of 4, 3 and 4 samples: an epoch has seven."""
    state = json.loads((newest(folder / "learned variance whole") / "state.json").read_text())
    assert sum(state["module"]["loss_history"]["counts"]) == 11


def test_the_measured_deviation_is_that_of_the_latents(folder: Path) -> None:
    """Moments of known mean and variance, as they are in the cache."""
    autoencoder = load_parts(folder / "model").autoencoder
    random = torch.Generator().manual_seed(0)
    means = 3 + 2 * torch.randn(50, 4, 8, 8, generator=random)
    log_variance = torch.full_like(means, math.log(1.5))
    moments = torch.cat([means, log_variance], dim=1)
    readers = ImageReaders("moments", lambda index, crop, flip: moments[index])
    expected = autoencoder.scaling_factor * (2**2 + 1.5) ** 0.5
    assert measured_deviation(readers, 50, autoencoder) == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"path": "flow", "edm": {"rho": 5.0}},
            "edm is given, but path is flow: set path=edm or leave edm out",
        ),
        ({"flow": {"shift": 2.0}}, "flow is given, but path is ddpm"),
        ({"path": "ve", "vp": {"beta_max": 30.0}}, "vp is given, but path is ve: set path=vp"),
        ({"path": "vp", "vp": {"beta_max": 0.05}}, "beta_min = 0.1 must be below beta_max = 0.05"),
        ({"path": "ve", "ve": {"sigma_max": 0.005}}, "sigma_min = 0.01 must be below sigma_max = 0.005"),
        ({"path": "edm", "cache": {"enabled": False}}, "edm.sigma_data is measured on the cache"),
        ({"path": "edm", "objective": {"weighting": "min_snr"}}, "path edm has a weighting of its own"),
        ({"path": "edm", "objective": {"timestep_shift": 2.0}}, "by edm.log_mean and edm.log_std"),
        ({"path": "edm", "edm": {"sigma_min": 90.0}}, "sigma_min = 90 must be below sigma_max = 80"),
        ({"schedule": {"learn_variance": True}, "task": "edit"}, "learn_variance needs task text-to-image"),
        (
            {"path": "flow", "objective": {"timestep_distribution": "loss_aware"}},
            "loss_aware needs path ddpm, not flow",
        ),
    ],
)
def test_settings_of_another_path_are_refused(
    folder: Path, changes: dict[str, Any], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert denoiser.main([str(make_config(folder, "wrong", **changes))]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "class_name"),
    [
        ("flow", None),
        ("edm", None),
        ("ve", "DPMSolverMultistepScheduler"),  # which reads the saved table
        ("learned variance", None),
    ],
)
def test_the_card_names_no_scheduler_that_a_stock_pipeline_cannot_run(
    folder: Path, name: str, class_name: str | None
) -> None:
    """The default sampler of these runs is dpmpp_2m; without a change, the saved scheduler fits the model."""
    change = scheduler_change(load_parts(folder / f"{name} whole" / "pipeline"))
    assert (change.class_name if change else None) == class_name

"""For each objective: a sample's loss depends on no other, and what a run has measured is all that resuming needs.

So any division of a batch among processes and micro-batches adds up to the same gradient. Whole runs that are broken
off are in tests/train/test_train_paths.py, and two processes in tests/train/test_processes.py.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from ldm.config import validate
from ldm.diffusion.flow import FlowPath
from ldm.errors import UserError
from ldm.models.loading.model import save_parts
from tests.support.tiny_models import make_sd1
from tests.support.tiny_runs import COMMON, DENOISER
from train.loop.denoiser_loss import DenoiserLoss
from train.run.denoiser_model import make_loss
from train.settings.denoiser import DenoiserSettings

OBJECTIVES: dict[str, dict[str, Any]] = {
    "epsilon": {},
    "v, min-SNR": {"schedule": {"prediction_type": "v_prediction"}, "objective": {"weighting": "min_snr"}},
    "learned variance": {
        "schedule": {"learn_variance": True, "num_train_timesteps": 2},
        "objective": {"timestep_distribution": "loss_aware"},
    },
    "flow": {"path": "flow", "objective": {"timestep_distribution": "logit_normal", "timestep_shift": 2.0}},
    "flow, x_0": {"path": "flow", "flow": {"prediction_type": "sample"}},
    "reflow": {"path": "flow", "reflow": {"model": "flow", "num_inference_steps": 2}},
    "edm": {"path": "edm"},
    "vp": {"path": "vp"},
    "ve": {"path": "ve"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("objectives")
    parts = make_sd1(folder / "tokenizer")
    save_parts(parts, folder / "model")
    parts.scheduler_config = FlowPath().scheduler_config()
    save_parts(parts, folder / "flow")
    return folder


def module_of(folder: Path, name: str) -> DenoiserLoss:
    model, changes = str(folder / "model"), dict(OBJECTIVES[name])
    if "reflow" in changes:
        changes["reflow"] = {**changes["reflow"], "model": str(folder / "flow")}
    tree = {**COMMON, **DENOISER, "run_dir": "run", "data": {"path": "data", "height": 16, "width": 16}}
    parts = {"parts": {"autoencoder": model, "text_encoder": model}, "trainable": "unet"}
    torch.manual_seed(0)
    return make_loss(validate(DenoiserSettings, {**tree, **parts, **changes})).train()


def batch_of(count: int) -> dict[str, Any]:
    random = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(count, *shape, generator=random)

    return {
        "noise": normal(4, 8, 8),
        "posterior_noise": normal(4, 8, 8),
        "moments": 0.5 * normal(8, 8, 8),
        "position": torch.tensor([0.1, 0.4, 0.6, 0.9])[:count],
        "caption": ["red", "a blue square", "", "green"][:count],
        "weight": torch.ones(count),
        "loss_weight": torch.ones(count),
    }


def shares(batch: dict[str, Any], *sizes: int) -> list[dict[str, Any]]:
    """Pieces of a batch, of these sizes."""
    ends = [sum(sizes[: n + 1]) for n in range(len(sizes))]
    return [
        {key: value[end - size : end] for key, value in batch.items()}
        for size, end in zip(sizes, ends, strict=True)
    ]


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_losses_of_a_batch_are_those_of_its_parts(folder: Path, name: str) -> None:
    module, batch = module_of(folder, name), batch_of(4)
    with torch.no_grad():
        whole = module(batch)["loss"]
        parts = torch.cat([module(part)["loss"] for part in shares(batch, 1, 3)])
    assert bool(whole.isfinite().all())
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_weights_and_measured_numbers_are_all_that_the_loss_depends_on(folder: Path, name: str) -> None:
    """As a checkpoint keeps them: the numbers as JSON."""
    module, batch = module_of(folder, name), batch_of(4)
    if name == "edm":
        module.use_deviation(0.7)
    with torch.no_grad():
        for _ in range(8):  # two timesteps, of which each gets its history
            module(batch)
            if (observed := module.observed()) is not None:
                module.learn(observed)
                module.start_step()
        before = module(batch)["loss"]
        again = module_of(folder, name)
        again.load_state_dict(module.state_dict())
        again.load_numbers(json.loads(json.dumps(module.numbers())))
        assert torch.equal(again(batch)["loss"], before)
    if module.loss_history is not None:
        assert module.loss_history.is_complete, "sampling by losses has begun"


def test_a_history_of_losses_needs_a_base_with_a_table(folder: Path) -> None:
    tree = {**COMMON, "program": "denoiser", "run_dir": "run", "data": {"path": "data"}, "trainable": "unet"}
    aware = {"base": str(folder / "flow"), "objective": {"timestep_distribution": "loss_aware"}}
    with pytest.raises(UserError, match="flow is of path flow: use uniform"):
        make_loss(validate(DenoiserSettings, {**tree, **aware}))

"""One process, two processes, and accumulation train the same model, as does a run resumed with fewer processes."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from ldm.config import load_settings
from tests.support.tiny_launch import train_together
from tests.support.tiny_runs import DENOISER, train_parts, write_config
from train import denoiser
from train.run.denoiser_model import make_loss

RUN = {
    "num_steps": 12,
    "save_every": 6,
    "keep_checkpoints": 3,
    "optim": {"learning_rate": 0.003, "num_warmup_steps": 2, "lr_schedule": "constant", "ema_decay": 0.5},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine samples in batches of four: the last batch of an epoch has one sample, so a second process has none.

    `whole` is a run of one process.
    """
    folder = tmp_path_factory.mktemp("processes")
    train_parts(folder)
    for number, color in enumerate(("orange", "purple")):
        Image.new("RGB", (16, 16), color).save(folder / "data" / f"{color}.png")
        with (folder / "data/metadata.jsonl").open("a") as rows:
            rows.write("\n" + json.dumps({"file_name": f"{color}.png", "text": f"{color} {number}"}))
    assert denoiser.main([str(make_config(folder, "whole"))]) == 0
    return folder


@pytest.fixture(scope="module")
def two(folder: Path) -> Path:
    """The same run with two processes."""
    train_together([{"do": "denoiser", "config": str(make_config(folder, "two"))}])
    return folder / "two"


def make_config(folder: Path, name: str, **changes: Any) -> Path:
    parts = {part: str(folder / part) for part in ("autoencoder", "text_encoder")}
    tree = {**RUN, **changes}
    return write_config(
        folder / f"{name}.yaml", DENOISER, folder / "data", folder / name, parts=parts, **tree
    )


def rows(run_dir: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def final_weights(run_dir: Path) -> torch.Tensor:
    return flat(load_file(run_dir / "checkpoints/step-000012/weights.safetensors"))


def start_weights(config: Path) -> torch.Tensor:
    settings = load_settings(denoiser.DenoiserSettings, config)
    torch.manual_seed(settings.seed)
    module = make_loss(settings)
    return flat({name: p.detach() for name, p in module.named_parameters() if p.requires_grad})


def flat(weights: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([weights[name].flatten() for name in sorted(weights)])


def assert_same_training(folder: Path, other: Path) -> None:
    """The losses agree to 1e-5, the learning rates exactly, and the weights to a thousandth of how far they moved.

    Under AdamW a weight with a zero gradient moves by rounding errors, so the whole vector is compared.
    """
    one, two = rows(folder / "whole"), rows(other)
    assert [row["loss"] for row in two] == pytest.approx([row["loss"] for row in one], rel=1e-5)
    assert [row["learning_rate"] for row in two] == [row["learning_rate"] for row in one]
    start, a, b = start_weights(folder / "whole.yaml"), final_weights(folder / "whole"), final_weights(other)
    assert (a - b).norm() <= 1e-3 * (a - start).norm()


def test_two_processes_train_as_one(folder: Path, two: Path) -> None:
    assert_same_training(folder, two)


def test_accumulation_changes_nothing(folder: Path) -> None:
    assert denoiser.main([str(make_config(folder, "accumulated", max_micro_batch=1))]) == 0
    assert_same_training(folder, folder / "accumulated")


def test_a_run_of_two_processes_goes_on_with_one(folder: Path, two: Path) -> None:
    shutil.copytree(two, folder / "handed-over")
    shutil.rmtree(folder / "handed-over/checkpoints/step-000012")
    assert denoiser.main([str(make_config(folder, "handed-over"))]) == 0
    assert_same_training(folder, folder / "handed-over")


LOSS_AWARE = {
    "num_steps": 20,
    "save_every": 10,
    "schedule": {"num_train_timesteps": 4, "learn_variance": True},
    "objective": {"timestep_distribution": "loss_aware"},
}
"""Few timesteps, so that all have their history after about half of the steps, and are then sampled by their losses."""


def loss_history(run_dir: Path, step: int) -> Any:
    state = json.loads((run_dir / f"checkpoints/step-{step:06d}/state.json").read_text())
    return state["module"]["loss_history"]


@pytest.mark.slow
def test_the_history_of_losses_is_that_of_all_processes_and_survives_fewer(folder: Path) -> None:
    assert denoiser.main([str(make_config(folder, "aware", **LOSS_AWARE))]) == 0
    train_together([{"do": "denoiser", "config": str(make_config(folder, "aware two", **LOSS_AWARE))}])
    shutil.copytree(folder / "aware two", folder / "aware on")
    shutil.rmtree(folder / "aware on/checkpoints/step-000020")
    assert denoiser.main([str(make_config(folder, "aware on", **LOSS_AWARE))]) == 0
    one = loss_history(folder / "aware", 20)
    assert min(one["counts"]) == 10, "sampling by losses has begun"
    for name in ("aware two", "aware on"):
        other = loss_history(folder / name, 20)
        assert other["counts"] == one["counts"]
        for row, expected in zip(other["losses"], one["losses"], strict=True):
            assert row == pytest.approx(expected, rel=1e-3)
        losses = [[row["loss"] for row in rows(folder / run)] for run in ("aware", name)]
        assert losses[1] == pytest.approx(losses[0], rel=1e-3)


def test_uncached_training_gives_the_same_losses(folder: Path) -> None:
    config = make_config(folder, "uncached", cache={"enabled": False})
    assert denoiser.main([str(config)]) == 0
    assert_same_training(folder, folder / "uncached")

"""A fine-tuning run that keeps its best: the result has the best weights, and as many prompt chunks as in training."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from ldm.models.loading.model import load_parts, save_parts
from tests.support.tiny_models import make_sd1
from tests.support.tiny_runs import COMMON, DENOISER, write_squares
from train import denoiser
from train.data import denoiser_data
from train.run.best import read_best
from train.run.denoiser_model import make_parts

LOSSES = [3.0, 1.0, 2.0, 4.0]
"""The losses returned after each step: the second is the best."""


def told(losses: list[float], measure: Callable[..., dict[str, float]]) -> Callable[..., dict[str, float]]:
    """Measures as a run does, but returns another number."""
    waiting = iter(losses)

    def held_out_loss(*args: Any, **options: Any) -> dict[str, float]:
        assert measure(*args, **options)["validation_loss"] > 0
        return {"validation_loss": next(waiting)}

    return held_out_loss


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four steps with two prompt chunks and the cache; training drops every caption, validation none."""
    folder = tmp_path_factory.mktemp("best")
    save_parts(make_sd1(folder / "tokenizer"), folder / "base")
    write_squares(folder / "data")
    changes = {
        "trainable": "unet",
        "base": str(folder / "base"),
        "model": {},
        "num_steps": 4,
        "prompt_chunks": 2,
        "captions": {"dropout": 1.0},
        "cache": {"folder": str(folder / "cache")},
        "data": {"path": str(folder / "data"), "height": 16, "width": 16, "holdout_fraction": 0.4},
        "validation": {"every": 1, "keep_best": True},
    }
    config = folder / "run.yaml"
    config.write_text(yaml.safe_dump({**COMMON, **DENOISER, "run_dir": str(folder / "run"), **changes}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(denoiser_data, "held_out_loss", told(LOSSES, denoiser_data.held_out_loss))
        assert denoiser.main([str(config)]) == 0
    return folder / "run"


def test_the_model_has_the_best_weights_and_not_the_last(run_dir: Path) -> None:
    step, best = read_best(run_dir)
    assert step == 2
    unet = load_parts(run_dir / "pipeline").denoiser.unet
    written = {f"denoiser.unet.{name}": parameter for name, parameter in unet.named_parameters()}
    assert written.keys() == best.keys()
    assert all(torch.equal(written[name], tensor) for name, tensor in best.items())


def test_the_model_is_read_in_the_contexts_that_it_was_trained_on(run_dir: Path) -> None:
    base, own = (
        json.loads((folder / "ldm.json").read_text())["defaults"]
        for folder in (run_dir.parent / "base", run_dir / "pipeline")
    )
    assert own == {**base, "max_prompt_chunks": 2} and base["max_prompt_chunks"] == 1


def test_fewer_contexts_than_the_base_has_take_none_away(run_dir: Path) -> None:
    tree = {"program": "denoiser", "run_dir": "run", "num_steps": 1000, "data": {"path": "data"}}
    for num_chunks, wanted in ((1, 2), (2, 2), (3, 3)):
        more = {"base": str(run_dir / "pipeline"), "prompt_chunks": num_chunks}
        settings = denoiser.DenoiserSettings.model_validate({**tree, **more})
        assert make_parts(settings).defaults.max_prompt_chunks == wanted

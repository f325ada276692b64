"""Prodigy: the library's steps, an estimate that survives a checkpoint, and what it cannot be combined with."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from prodigyopt import Prodigy
from torch import nn

from ldm.config import validate
from ldm.errors import UserError
from tests.support.tiny_runs import COMMON, DENOISER
from train.loop.averages import WeightAverages
from train.loop.optim import apply_gradients, make_optimizer, set_learning_rate
from train.loop.prodigy import effective_learning_rate
from train.loop.state import TrainState
from train.run.checkpoints import load_checkpoint, save_checkpoint
from train.settings.denoiser import DenoiserSettings
from train.settings.shared import OptimSettings

SETTINGS = OptimSettings(optimizer="prodigy", learning_rate=1.0, weight_decay=0.01)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4))


def state_of(settings: OptimSettings = SETTINGS) -> TrainState:
    net = network()
    return TrainState(net, make_optimizer(net, settings), WeightAverages(net, decay=0.5))


def step(state: TrainState, number: int) -> None:
    inputs = torch.randn(8, 6, generator=torch.Generator().manual_seed(number))
    set_learning_rate(state.optimizer, min(1.0, (number + 1) / 4))
    loss = (state.module(inputs) - inputs[:, :4] * 3).square().mean()
    loss.backward()
    apply_gradients(state, list(state.module.parameters()), loss.detach(), 1e9)
    state.optimizer.zero_grad()
    state.step += 1


def weights(state: TrainState) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in state.module.parameters()]


def test_its_steps_are_the_librarys() -> None:
    state, other = state_of(), network()
    theirs = Prodigy(
        [{"params": [p for p in other.parameters() if p.ndim > 1], "weight_decay": 0.01},
         {"params": [p for p in other.parameters() if p.ndim == 1]}],
        lr=1.0, betas=(0.9, 0.99), use_bias_correction=True, safeguard_warmup=True,
    )  # fmt: skip
    reference = TrainState(other, theirs, state.average)
    for number in range(12):
        step(state, number)
        step(reference, number)
    assert all(torch.equal(one, two) for one, two in zip(weights(state), weights(reference), strict=True))


def test_it_finds_a_rate_that_is_far_from_its_first() -> None:
    state = state_of()
    losses = []
    for number in range(200):
        step(state, number)
        inputs = torch.randn(64, 6, generator=torch.Generator().manual_seed(10_000))
        with torch.no_grad():
            losses.append(float((state.module(inputs) - inputs[:, :4] * 3).square().mean()))
    assert effective_learning_rate(state.optimizer, 1.0) > 1e-4  # it starts at 1e-6
    assert losses[-1] < losses[0] / 2


def test_a_run_that_is_broken_off_goes_on_to_the_last_bit(tmp_path: Path) -> None:
    whole, broken = state_of(), state_of()
    for number in range(5):
        step(whole, number)
        step(broken, number)
    checkpoint = save_checkpoint(broken, tmp_path, 1)
    resumed = state_of()
    load_checkpoint(resumed, checkpoint)
    for number in range(5, 12):
        step(whole, number)
        step(resumed, number)
    assert all(torch.equal(one, two) for one, two in zip(weights(whole), weights(resumed), strict=True))
    assert effective_learning_rate(resumed.optimizer, 1.0) == effective_learning_rate(whole.optimizer, 1.0)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a usual learning rate": (
        {"optim": {"optimizer": "prodigy", "learning_rate": 1e-4}},
        "set learning_rate=1",
    ),
    "two rates": (
        {"optim": {"optimizer": "prodigy", "learning_rate": 1}, "text_encoder_learning_rate": 0.5},
        "one rate for all: leave it out",
    ),
    "shards": ({"optim": {"optimizer": "prodigy", "learning_rate": 1}, "sharding": "full"}, "use adamw"),
    "moments": (
        {"optim": {"optimizer": "prodigy", "learning_rate": 1, "moments": "8bit"}},
        "leave out optimizer = prodigy",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_it_cannot_do_is_refused(name: str) -> None:
    changes, message = REFUSED[name]
    tree = {**COMMON, **DENOISER, "run_dir": "run", "data": {"path": "data"}, "base": "emoji", **changes}
    del tree["model"]
    with pytest.raises(UserError, match=message):
        validate(DenoiserSettings, tree)


def test_without_the_library_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prodigyopt", None)
    with pytest.raises(UserError, match="needs prodigyopt"):
        make_optimizer(network(), SETTINGS)

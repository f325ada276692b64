"""Steps within the backward pass are those of the ordinary loop, to the last bit, with one gradient at a time."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ldm.config import read_yaml, to_yaml, validate
from ldm.errors import UserError
from tests.support.tiny_training import assert_same_run, make_settings, train, train_with_stops
from train.loop.averages import WeightAverages
from train.loop.fused_backward import FusedBackward
from train.loop.optim import apply_gradients, make_optimizer
from train.loop.state import TrainState
from train.plan.state_cost import count_state
from train.run import devices
from train.settings.shared import OptimSettings, TrainSettings

UNCLIPPED: dict[str, Any] = {"max_grad_norm": None}
FUSED: dict[str, Any] = {**UNCLIPPED, "fused_backward": True}
FORMATS: list[dict[str, Any]] = [{}, {"moments": "8bit"}, {"weights": "bfloat16", "moments": "8bit"}]


def test_a_run_is_that_of_the_ordinary_steps(tmp_path: Path) -> None:
    """Weights, moments, averages, losses and norms, with dropout; the second run is also interrupted and resumed."""
    train(make_settings(tmp_path / "ordinary", optim=UNCLIPPED))
    train_with_stops(make_settings(tmp_path / "fused", optim=FUSED), [3])
    assert_same_run(tmp_path / "ordinary", tmp_path / "fused")


class Shared(nn.Module):
    """A matrix that is used twice, and one that gets no gradient."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.twice, self.unused = nn.Linear(70, 70, dtype=dtype), nn.Linear(3, 3, dtype=dtype)
        self.last = nn.Linear(70, 2, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.twice(self.twice(x).tanh())).float().square().mean()


def state_of(changes: dict[str, Any]) -> TrainState:
    module = Shared(getattr(torch, changes.get("weights", "float32")))
    settings = OptimSettings(learning_rate=0.01, **UNCLIPPED, **changes)
    return TrainState(module, make_optimizer(module, settings), WeightAverages(module, 0.0))


def inputs(state: TrainState, number: int) -> Tensor:
    drawn = torch.randn(5, 70, generator=torch.Generator().manual_seed(number))
    return drawn.to(next(state.module.parameters()).dtype)


def ordinary_step(state: TrainState, x: Tensor) -> tuple[Tensor, ...]:
    loss = state.module(x)
    loss.backward()
    found = apply_gradients(state, list(state.module.parameters()), loss.detach(), math.inf)
    state.optimizer.zero_grad(set_to_none=True)
    return found


def fused_step(state: TrainState, fused: FusedBackward, x: Tensor) -> tuple[Tensor, ...]:
    with fused.moving():
        loss = state.module(x)
        fused.begin(loss)
        loss.backward()
    assert all(p.grad is None for p in state.module.parameters())
    return fused.finish(list(state.module.parameters()))


def assert_same(one: TrainState, two: TrainState) -> None:
    for mine, other in zip(one.module.parameters(), two.module.parameters(), strict=True):
        assert torch.equal(mine, other)
        slots, others = one.optimizer.state[mine], two.optimizer.state[other]
        assert slots.keys() == others.keys()
        assert all(torch.equal(slots[name], others[name]) for name in slots)


@pytest.mark.parametrize("changes", FORMATS)
def test_each_format_and_a_shared_matrix(changes: dict[str, Any]) -> None:
    one, two = state_of(changes), state_of(changes)
    fused = FusedBackward(two.optimizer)
    for number in range(3):
        x = inputs(one, number)
        found = zip(ordinary_step(one, x), fused_step(two, fused, x), strict=True)
        assert all(torch.equal(mine, other) for mine, other in found)
    assert_same(one, two)
    assert not one.optimizer.state[one.module.unused.weight]  # type: ignore[index, union-attr]


def test_only_one_gradient_is_there_at_a_time() -> None:
    state = state_of({})
    most: list[int] = []
    for parameter in state.module.parameters():
        parameter.register_post_accumulate_grad_hook(
            lambda _: most.append(sum(p.grad is not None for p in state.module.parameters()))
        )
    fused_step(state, FusedBackward(state.optimizer), inputs(state, 0))
    assert most == [1] * 4
    most.clear()
    ordinary_step(state, inputs(state, 0))
    assert most == [1, 2, 3, 4]
    cost, usual = count_state(state, fused_backward=True), count_state(state)
    assert (cost.gradients, usual.gradients) == (4 * 70 * 70, usual.weights)


def test_nothing_moves_if_the_loss_is_not_finite() -> None:
    state = state_of({})
    before = [p.detach().clone() for p in state.module.parameters()]
    norm, skipped, bad = fused_step(state, FusedBackward(state.optimizer), inputs(state, 0) * math.inf)
    assert skipped and bad and not math.isfinite(norm)
    assert all(torch.equal(p, old) for p, old in zip(state.module.parameters(), before, strict=True))


def test_a_weight_without_a_finite_gradient_stays_and_the_step_is_bad() -> None:
    state = state_of({})
    before = [p.detach().clone() for p in state.module.parameters()]
    spoil = state.module.twice.weight.register_hook(lambda gradient: gradient * math.nan)  # type: ignore[union-attr]
    _, skipped, bad = fused_step(state, FusedBackward(state.optimizer), inputs(state, 0))
    spoil.remove()
    assert bad and not skipped
    moved = [not torch.equal(p, old) for p, old in zip(state.module.parameters(), before, strict=True)]
    assert moved == [False, True, False, False, True, True]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"optim": {"max_grad_norm": 1.0}},
            "fused_backward with max_grad_norm = 1.0, which needs all gradients at once: set max_grad_norm=null",
        ),
        ({"optim": {"optimizer": "adamw_8bit"}}, "fused_backward with optimizer = adamw_8bit: use adamw"),
        (
            {"max_micro_batch": 3},
            "max_micro_batch = 3 of global_batch_size = 4, whose gradients are accumulated",
        ),
        (
            {"mixed_precision": "fp16"},
            "fused_backward with mixed_precision = fp16: set mixed_precision=bf16 or no",
        ),
    ],
)
def test_where_it_would_be_another_step_it_is_refused(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError) as error:
        make_settings(tmp_path, **{**changes, "optim": {**FUSED, **changes.get("optim", {})}})
    assert said in str(error.value) and "\n" not in str(error.value)


def test_several_processes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Accelerator, "num_processes", 2)
    with pytest.raises(
        UserError, match=r"in 2 processes, whose gradients are averaged: set optim.fused_backward"
    ):
        devices.make_accelerator(make_settings(tmp_path, optim=FUSED))


def test_the_settings_of_a_run_are_read_back(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(to_yaml(make_settings(tmp_path, optim=FUSED)))
    tree = read_yaml(tmp_path / "config.yaml")
    assert validate(TrainSettings, tree) == make_settings(tmp_path, optim=FUSED)

"""Learning rate and optimizer groups against their formulas, and the private names that the step relies on."""

import pytest
from torch import nn

from train.loop.optim import learning_rate_at, make_optimizer
from train.settings.shared import OptimSettings


def test_the_learning_rate_warms_up_and_falls_along_a_cosine() -> None:
    settings = OptimSettings(learning_rate=1.0, num_warmup_steps=10, final_lr_fraction=0.1)
    rates = [learning_rate_at(step, 110, settings) for step in range(110)]
    assert rates[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert rates[60] == pytest.approx(0.55)  # half way down
    assert rates[109] == pytest.approx(0.1, abs=1e-3)
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_a_constant_learning_rate_stays() -> None:
    settings = OptimSettings(learning_rate=0.5, num_warmup_steps=0, lr_schedule="constant")
    assert {learning_rate_at(step, 7, settings) for step in range(7)} == {0.5}


def test_only_matrices_decay_and_frozen_weights_are_left_out() -> None:
    module = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3), nn.Linear(3, 1))
    module[2].requires_grad_(False)
    decayed, plain = make_optimizer(module.parameters(), OptimSettings(weight_decay=0.3)).param_groups
    assert [p.shape for p in decayed["params"]] == [(3, 3)] and decayed["weight_decay"] == 0.3
    assert len(plain["params"]) == 3 and plain["weight_decay"] == 0

"""Learning rate, optimizer groups and the weights' average, against their formulas."""

import pytest
import torch
from torch import nn

from train.optim import WeightAverage, learning_rate_at, make_optimizer
from train.settings import OptimSettings


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


def test_the_average_follows_its_closed_form() -> None:
    module = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        module.weight.fill_(1.0)
    average = WeightAverage(module, decay=0.5)
    expected = 1.0
    for step, value in enumerate([3.0, -2.0, 5.0, 5.0], 1):
        with torch.no_grad():
            module.weight.fill_(value)
        average.update(step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * value
    assert average.average["weight"].item() == pytest.approx(expected)


def test_the_average_is_lent_to_the_module_and_taken_back() -> None:
    module = nn.Linear(2, 2)
    average = WeightAverage(module, decay=0.5)
    own = module.weight.detach().clone() + 1
    with torch.no_grad():
        module.weight.copy_(own)
    held = average.average["weight"].clone()
    with average.applied():
        assert torch.equal(module.weight, held)
    assert torch.equal(module.weight, own) and torch.equal(average.average["weight"], held)


def test_no_average_is_the_weights_themselves() -> None:
    module = nn.Linear(2, 2)
    average = WeightAverage(module, decay=0.0)
    with torch.no_grad():
        module.weight.add_(1)
    average.update(1)
    assert torch.equal(average.average["weight"], module.weight)

"""Learning rate and optimizer groups against their formulas, and the private names that the step relies on."""

import pytest
import torch
from torch import nn

from train.loop.averages import lerp_all
from train.loop.optim import decides_on_device, learning_rate_at, make_optimizer, scale_on_device
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


def test_torch_says_which_optimizers_decide_on_the_device() -> None:
    """If torch renamed the attribute, every step would silently wait for the device."""
    fused = make_optimizer([nn.Parameter(torch.ones(2, 2))], OptimSettings())
    assert decides_on_device(fused)
    assert not decides_on_device(torch.optim.SGD([nn.Parameter(torch.ones(2))]))


def test_the_scale_on_the_device_is_the_scale() -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(torch.ones(()))
    assert float(scale_on_device(scaler)) == scaler.get_scale() == 1024.0


@pytest.mark.parametrize("weight", [0.3, torch.tensor(0.3)])
def test_lerp_of_all_tensors_is_the_lerp_of_each(weight: float | torch.Tensor) -> None:
    generator = torch.Generator().manual_seed(0)
    tensors, ends = ([torch.randn(size, generator=generator) for size in (3, 1000)] for _ in range(2))
    expected = [torch.lerp(tensor, end, weight) for tensor, end in zip(tensors, ends, strict=True)]
    lerp_all(tensors, ends, [weight] * 2 if isinstance(weight, torch.Tensor) else weight)
    assert all(torch.equal(tensor, one) for tensor, one in zip(tensors, expected, strict=True))

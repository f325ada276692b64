"""Clipping inside the fused optimizer gives the same steps as torch's clipping before it."""

import copy

import pytest
import torch
from torch import nn

from train.loop.optim import make_optimizer, step_clipped
from train.settings.shared import OptimSettings

GO_ON = torch.tensor(False)


def a_network() -> nn.Module:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))
    for parameter in network.parameters():
        parameter.grad = torch.randn_like(parameter)
    return network


@pytest.mark.parametrize("max_norm", [0.01, 0.5, 1e3])
@pytest.mark.parametrize("fused", [True, False])
def test_the_moves_are_those_of_a_clipped_gradient(max_norm: float, fused: bool) -> None:
    ours = a_network()
    theirs = copy.deepcopy(ours)
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert mine.grad is not None
        other.grad = mine.grad.clone()
    parameters = list(ours.parameters())
    norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    # an epsilon as large as the gradient, since AdamW alone would undo any scaling
    made = [torch.optim.AdamW(net.parameters(), lr=0.1, eps=0.1, fused=fused) for net in (ours, theirs)]
    step_clipped(GO_ON, made[0], parameters, norm, max_norm)
    assert nn.utils.clip_grad_norm_(theirs.parameters(), max_norm) == norm
    made[1].step()
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-6, atol=1e-7)


def test_a_clip_of_one_step_does_not_stay_for_the_next() -> None:
    network = a_network()
    parameters = list(network.parameters())
    optimizer = make_optimizer(parameters, OptimSettings())
    for norm in (torch.tensor(50.0), torch.tensor(0.5)):
        step_clipped(GO_ON, optimizer, parameters, norm, 1.0)
        assert float(optimizer.grad_scale) == pytest.approx(max(1.0, float(norm)))  # type: ignore[attr-defined]


def test_a_gradient_that_is_not_finite_moves_nothing() -> None:
    network = a_network()
    before = copy.deepcopy(network.state_dict())
    optimizer = make_optimizer(network.parameters(), OptimSettings())
    norm = torch.tensor(float("nan"))
    step_clipped(torch.tensor(True), optimizer, list(network.parameters()), norm, 1.0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())

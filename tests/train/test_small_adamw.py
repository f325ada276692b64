"""AdamW with weights of bfloat16 and moments of 8 bits: what it computes, and what it keeps."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from train.loop.eight_bits import BLOCK, SMALLEST, from_eight_bits, levels, to_eight_bits
from train.loop.optim import decides_on_device, make_optimizer, step_unless
from train.loop.small_adamw import SmallAdamW
from train.settings.shared import OptimSettings

CPU = torch.device("cpu")
FORMATS: list[dict[str, Any]] = [
    {"weights": "bfloat16"},
    {"moments": "8bit"},
    {"weights": "bfloat16", "moments": "8bit"},
]


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def network(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(80, 64), nn.Tanh(), nn.Linear(64, 64)).to(dtype)


def step(net: nn.Module, optimizer: torch.optim.Optimizer, number: int) -> None:
    for index, parameter in enumerate(net.parameters()):
        parameter.grad = drawn(*parameter.shape, seed=10 * number + index).to(parameter.dtype)
    optimizer.step()


def make(net: nn.Module, *, seed: int = 0, **changes: Any) -> torch.optim.Optimizer:
    return make_optimizer(net, OptimSettings(learning_rate=0.01, **changes), seed=seed)


def test_in_float32_it_is_torchs_adamw() -> None:
    ours, theirs = network(), network()
    mine = SmallAdamW([{"params": list(ours.parameters()), "weight_decay": 0.1}], lr=0.01, betas=(0.9, 0.99))
    other = torch.optim.AdamW(theirs.parameters(), lr=0.01, betas=(0.9, 0.99), weight_decay=0.1)
    for number in range(20):
        step(ours, mine, number)
        step(theirs, other, number)
    for one, two in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-7)
        for slot in ("exp_avg", "exp_avg_sq", "step"):
            torch.testing.assert_close(mine.state[one][slot], other.state[two][slot], rtol=1e-6, atol=1e-9)


def test_a_weight_that_would_stand_still_moves_by_the_right_amount_on_average() -> None:
    """Steps of 1/40 of the distance between neighbours, which rounding to the nearest drops."""
    lr, num_steps, num_weights = 2.0**-7 / 40, 100, 4000
    weight = nn.Parameter(torch.ones(num_weights, dtype=torch.bfloat16))
    optimizer = SmallAdamW([weight], lr=lr, betas=(0.9, 0.99))
    nearest = torch.ones(num_weights, dtype=torch.bfloat16)
    for _ in range(num_steps):
        weight.grad = -torch.ones_like(weight)  # AdamW then moves it by lr, up to epsilon
        optimizer.step()
        nearest = (nearest.float() + lr).bfloat16()
    assert torch.equal(nearest, torch.ones_like(nearest))
    moved = weight.detach().double() - 1
    expected, ulp = num_steps * lr, 2.0**-7
    deviation = ulp * (num_steps * (1 / 40) * (39 / 40) / num_weights) ** 0.5
    assert abs(moved.mean() - expected) < 4 * deviation
    assert 0.5 < moved.std() / (deviation * num_weights**0.5) < 2


@pytest.mark.parametrize("signed", [True, False])
def test_the_levels_are_those_of_the_dynamic_type(signed: bool) -> None:
    """At a few places of the table that bitsandbytes and torchao have as well."""
    known = levels(signed, CPU)
    assert len(known) == 256 and (known.diff() > 0).all() and known[-1] == 1
    assert known[0] == pytest.approx(-0.99296875 if signed else 0.0)
    assert known[1] == pytest.approx(-0.97890625 if signed else 3.25e-7)
    assert known[-2] == pytest.approx(0.99296875 if signed else 0.996484375)
    assert known[128] == pytest.approx(5.5e-7 if signed else 0.1105469, rel=1e-5)


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("count", [1, BLOCK, 5 * BLOCK + 3])
def test_eight_bits_hold_a_number_to_the_spacing_of_the_levels(signed: bool, count: int) -> None:
    values = drawn(count) * 10.0 ** -drawn(count, seed=1).abs().mul(3)
    values = values if signed else values.abs()
    codes, scales = to_eight_bits(values, signed=signed)
    assert codes.dtype == torch.uint8 and codes.shape == values.shape and len(scales) == -(-count // BLOCK)
    back = from_eight_bits(codes, scales, signed=signed)
    largest = scales.repeat_interleave(BLOCK)[:count]
    known = levels(signed, CPU)
    nearest = (known[None] * largest[:, None] - values[:, None]).abs().min(dim=1).values
    lost = (back - values).abs()
    assert (lost <= nearest + 1e-6 * largest).all()
    assert lost[(values.abs() == largest) & (values > 0)].sum() == 0


def test_a_second_moment_above_zero_is_not_kept_as_zero() -> None:
    values = torch.zeros(BLOCK)
    values[0], values[1] = 1.0, 1e-12
    codes, scales = to_eight_bits(values, signed=False)
    back = from_eight_bits(codes, scales, signed=False)
    assert back[1] > 0 and torch.equal(back[2:], values[2:])
    nothing = torch.zeros(3 * BLOCK)
    assert torch.equal(from_eight_bits(*to_eight_bits(nothing, signed=False), signed=False), nothing)


@pytest.mark.parametrize("changes", FORMATS)
def test_the_moments_in_eight_bits_lead_close_to_the_same_weights(changes: dict[str, Any]) -> None:
    """On a quadratic, all formats come down to where float32 does."""
    target = drawn(64, 80, seed=3)

    def distance(**changes: Any) -> float:
        weight = nn.Parameter(torch.zeros(64, 80).to(getattr(torch, changes.get("weights", "float32"))))
        optimizer = make_optimizer([weight], OptimSettings(learning_rate=0.02, weight_decay=0.0, **changes))
        for _ in range(300):
            weight.grad = weight.detach() - target.to(weight.dtype)
            optimizer.step()
        return float((weight.detach().float() - target).square().mean().sqrt())

    start = float(target.square().mean().sqrt())
    assert distance() < 0.01 * start
    assert distance(**changes) < 0.02 * start


def test_bytes_of_the_state() -> None:
    """Weights of 2 bytes; a byte for each moment of a matrix and 4 for each block; vectors keep float32."""
    net = network(torch.bfloat16)
    optimizer = make(net, weights="bfloat16", moments="8bit")
    assert isinstance(optimizer, SmallAdamW)
    step(net, optimizer, 0)
    assert SMALLEST == 64 * 64  # the second matrix is just large enough
    num_large, num_small = 64 * 80 + SMALLEST, 2 * 64
    kept = [t for slots in optimizer.state.values() for name, t in slots.items() if name != "step"]
    assert sum(t.nbytes for t in kept) == 2 * num_large + 2 * 4 * num_large // BLOCK + 2 * 4 * num_small
    assert sum(p.nbytes for p in net.parameters()) == 2 * (num_large + num_small)
    for parameter, slots in optimizer.state.items():
        assert optimizer.slot_shapes(parameter) == {name: tuple(t.shape) for name, t in slots.items()}


@pytest.mark.parametrize("changes", FORMATS)
def test_the_noise_is_that_of_the_seed_the_step_and_the_parameter(changes: dict[str, Any]) -> None:
    """Not of the global generator, which differs from process to process."""

    def trained(seed: int, disturb: int) -> list[Tensor]:
        net = network(getattr(torch, changes.get("weights", "float32")))
        optimizer = make(net, seed=seed, **changes)
        for number in range(3):
            torch.manual_seed(disturb + number)
            step(net, optimizer, number)
        return [p.detach() for p in net.parameters()]

    one, two, other = trained(0, 0), trained(0, 50), trained(1, 0)
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    rounds = "weights" in changes
    assert any(not torch.equal(a, b) for a, b in zip(one, other, strict=True)) == rounds


def test_two_equal_parameters_and_two_equal_steps_are_rounded_apart() -> None:
    pair = [nn.Parameter(torch.ones(500, dtype=torch.bfloat16)) for _ in range(2)]
    optimizer = SmallAdamW(pair, lr=0.001, betas=(0.9, 0.99))
    moves = []
    for _ in range(2):
        before = [p.detach().clone() for p in pair]
        for parameter in pair:
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        moves += [p.detach() - old for p, old in zip(pair, before, strict=True)]
    assert not torch.equal(moves[0], moves[1]) and not torch.equal(moves[0], moves[2])


def test_it_scales_the_gradient_and_leaves_out_steps_as_a_fused_optimizer_does() -> None:
    one, two = network(), network()
    first, second = make(one, moments="8bit"), make(two, moments="8bit")
    assert decides_on_device(first)
    first.grad_scale = torch.tensor(4.0)  # type: ignore[attr-defined]
    for index, (a, b) in enumerate(zip(one.parameters(), two.parameters(), strict=True)):
        a.grad = drawn(*a.shape, seed=index)
        b.grad = a.grad / 4
    before = copy.deepcopy(one.state_dict())
    step_unless(torch.tensor(True), first)
    assert not first.state and all(torch.equal(one.state_dict()[name], t) for name, t in before.items())
    step_unless(torch.tensor(False), first)
    second.step()
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))

"""Stochastic rounding: exact in expectation, and only ever to a neighbour."""

import pytest
import torch
from torch import Tensor

from train.loop.rounding import round_stochastically


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def neighbours(value: Tensor) -> tuple[Tensor, Tensor]:
    """The bfloat16 next to a number on the side of zero, and the one after it."""
    bits = value.view(torch.int32) & -0x10000
    return bits.view(torch.float32), (bits + 0x10000).view(torch.float32)


@pytest.mark.parametrize("fraction", [0.0, 1 / 65536, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("start", [1.0, -1.0, 0.0078125, -3e-30, 1e-40])
def test_a_number_becomes_its_upper_neighbour_as_often_as_it_lies_near_it(
    start: float, fraction: float
) -> None:
    low, high = neighbours(torch.tensor([start]))
    value = (low.view(torch.int32) + round(fraction * 65536)).view(torch.float32)
    num_draws = 200_000
    drawn = round_stochastically(value.expand(num_draws).contiguous(), generator()).float()
    ups = (drawn == high).sum().item()
    assert ups + (drawn == low).sum().item() == num_draws
    expected = num_draws * (round(fraction * 65536) / 65536)
    assert abs(ups - expected) <= 5 * (expected * (1 - fraction)) ** 0.5


def test_the_mean_of_many_draws_is_the_number() -> None:
    """The draws of 4,096 numbers, 400 each: no mean is farther off than 5.5 standard errors, and the sum is right."""
    values = torch.randn(4096, generator=generator(1))
    num_draws, noise = 400, generator(2)
    drawn = torch.stack([round_stochastically(values, noise).double() for _ in range(num_draws)])
    low, high = (each.double() for each in neighbours(values))
    share = (values.double() - low) / (high - low)
    error = (high - low).abs() * (share * (1 - share) / num_draws).sqrt()
    off = drawn.mean(0) - values.double()
    assert (off.abs() <= 5.5 * error + 1e-12).all()
    assert abs(off.sum()) <= 4 * error.square().sum().sqrt()


def test_what_bfloat16_can_hold_stays() -> None:
    held = torch.tensor([0.0, -0.0, 1.0, -2.5, 3e38, 1e-38, float("inf"), -float("inf")]).bfloat16().float()
    rounded = round_stochastically(held.repeat(500), generator())
    assert torch.equal(rounded.float(), held.repeat(500))
    assert torch.signbit(rounded[1]) and not torch.signbit(rounded[0])
    assert torch.isnan(round_stochastically(torch.tensor([float("nan")] * 100), generator())).all()


def test_the_draw_is_that_of_the_generator_and_the_layout_stays() -> None:
    values = torch.randn(3, 4, 5, 5, generator=generator(1)).to(memory_format=torch.channels_last)
    one, two, other = (round_stochastically(values, generator(seed)) for seed in (7, 7, 8))
    assert torch.equal(one, two) and not torch.equal(one, other)
    assert one.is_contiguous(memory_format=torch.channels_last)

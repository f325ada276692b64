"""Loss-aware sampling of timesteps: proportions, an unbiased mean, warm-up, and independence of the order."""

import json

import pytest
import torch

from ldm.diffusion.loss_aware import HISTORY, LossHistory


def complete(sizes: list[float]) -> LossHistory:
    """Each timestep has had the same loss in all of its history."""
    history = LossHistory(len(sizes))
    for t, size in enumerate(sizes):
        history.update(torch.full((HISTORY,), t), torch.full((HISTORY,), size))
    return history


def test_timesteps_are_sampled_in_proportion_to_their_losses() -> None:
    sizes = [1.0, 2.0, 3.0, 4.0]
    history = complete(sizes)
    drawn = history.timesteps_at(torch.linspace(0, 1, 10_001)[:-1])
    shares = torch.bincount(drawn, minlength=4) / len(drawn)
    assert shares.tolist() == pytest.approx([0.999 * size / 10 + 0.001 / 4 for size in sizes], abs=2e-4)


def test_the_weighted_mean_is_the_uniform_mean() -> None:
    sizes = torch.tensor([1.0, 2.0, 3.0, 4.0])
    history = complete(sizes.tolist())
    drawn = history.timesteps_at(torch.linspace(0, 1, 100_001)[:-1])
    assert float((sizes[drawn] * history.weights(drawn)).mean()) == pytest.approx(2.5, abs=1e-3)


def test_sampling_is_uniform_until_every_timestep_has_its_history() -> None:
    history = complete([1.0, 5.0, 5.0])
    history.counts[2] -= 1
    assert not history.is_complete
    assert history.probabilities().tolist() == pytest.approx([1 / 3] * 3)
    assert history.weights(torch.tensor([0, 1, 2])).tolist() == pytest.approx([1.0] * 3)


def test_the_order_of_a_steps_losses_makes_no_difference_and_old_ones_are_forgotten() -> None:
    timesteps, losses = torch.tensor([1, 0, 1, 1]), torch.tensor([3.0, 1.0, 2.0, float("nan")])
    one, other = complete([1.0, 1.0]), complete([1.0, 1.0])
    one.update(timesteps, losses)
    other.update(timesteps.flip(0), losses.flip(0))
    assert one.numbers() == other.numbers()
    assert one.losses[1].tolist() == [1.0] * 8 + [2.0, 3.0]
    assert torch.isfinite(one.losses).all()


def test_a_history_goes_through_json_to_the_last_bit() -> None:
    history = complete([0.1, 1 / 3, 2e-9])
    again = LossHistory(3)
    again.load(json.loads(json.dumps(history.numbers())))
    assert torch.equal(again.losses, history.losses) and torch.equal(again.counts, history.counts)

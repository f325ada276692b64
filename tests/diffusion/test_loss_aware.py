"""Loss-aware sampling of timesteps: proportions, an unbiased mean, warm-up, and independence of the order."""

import json
from typing import Any

import pytest
import torch

from ldm.diffusion.loss_aware import HISTORY, LossHistory
from train.loop.steps import learn_from_losses


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


class Observer(torch.nn.Module):
    """A module that has seen timesteps and losses, as `DenoiserLoss` does."""

    def __init__(self, seen: torch.Tensor) -> None:
        super().__init__()
        self.seen, self.history = seen, LossHistory(3)

    def observed(self) -> torch.Tensor:
        return self.seen

    def learn(self, observed: torch.Tensor) -> None:
        self.history.update(observed[:, 0].long(), observed[:, 1])

    def start_step(self) -> None:
        self.seen = self.seen[:0]


class OfRank:
    """accelerate's collectives as rank 0 of two sees them: the other rank has fewer samples, padded with -1."""

    def __init__(self, other: torch.Tensor) -> None:
        self.other = other

    def pad_across_processes(self, tensor: torch.Tensor, dim: int, pad_index: int) -> torch.Tensor:
        missing = max(len(self.other) - len(tensor), 0)
        return torch.cat([tensor, tensor.new_full((missing, 2), pad_index)])

    def gather(self, tensor: torch.Tensor) -> torch.Tensor:
        missing = max(len(tensor) - len(self.other), 0)
        return torch.cat([tensor, self.other, self.other.new_full((missing, 2), -1.0)])


@pytest.mark.parametrize("shared", [0, 1, 3, 5])
def test_every_division_of_a_step_among_processes_is_remembered_alike(shared: int) -> None:
    """The real collectives are in tests/train/test_processes.py, with two processes."""
    seen = torch.tensor([[0, 0.5], [2, 0.1], [0, 0.25], [1, 0.7], [2, 0.3]], dtype=torch.float64)
    whole, divided = Observer(seen), Observer(seen[:shared])
    none: Any = OfRank(seen[:0])
    other: Any = OfRank(seen[shared:])
    learn_from_losses(whole, none, torch.tensor(False))
    learn_from_losses(divided, other, torch.tensor(False))
    assert divided.history.numbers() == whole.history.numbers()
    assert whole.history.counts.tolist() == [2, 1, 2]


def test_a_skipped_step_is_not_remembered() -> None:
    module = Observer(torch.tensor([[0, 0.5]], dtype=torch.float64))
    alone: Any = OfRank(torch.zeros(0, 2, dtype=torch.float64))
    learn_from_losses(module, alone, torch.tensor(True))
    assert module.history.counts.sum() == 0 and len(module.seen) == 0

"""The weights' moving averages: their formula, swapping, skipped steps, saving, and exact resuming."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from ldm.diffusion.ema import gamma_of, shares
from ldm.io.files import manifest_fault, read_tensors
from train.loop.averages import AverageSettings, WeightAverages, save_snapshot

TWO = AverageSettings(widths=(0.05, 0.1))
KINDS = [AverageSettings(), TWO]


def moved(module: nn.Module, step: int) -> None:
    """Set the weights to values that depend only on the step."""
    generator = torch.Generator().manual_seed(step)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator))


def follow(averages: WeightAverages, module: nn.Module, steps: range) -> list[Tensor]:
    """Move and average for some steps; returns the live weight after each."""
    seen = []
    for step in steps:
        moved(module, step)
        averages.update(step)
        seen.append(module.weight.detach().clone())  # type: ignore[operator]
    return seen


def small() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(3, 2)


def test_the_average_of_a_decay_follows_its_formula() -> None:
    module = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        module.weight.fill_(1.0)
    averages = WeightAverages(module, decay=0.5)
    expected = 1.0
    for step, value in enumerate([3.0, -2.0, 5.0, 5.0], 1):
        with torch.no_grad():
            module.weight.fill_(value)
        averages.update(step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * value
    assert averages.tensors()["weight"].item() == pytest.approx(expected)


def test_the_averages_of_widths_follow_their_closed_form() -> None:
    module, count = small(), 40
    averages = WeightAverages(module, 0.999, TWO)
    seen = torch.stack(follow(averages, module, range(1, count + 1))).double()
    for width in TWO.widths:
        share = torch.from_numpy(shares(count, gamma_of(width), np.arange(1.0, count + 1)))
        expected = torch.einsum("t,tab->ab", share, seen).float()
        torch.testing.assert_close(
            averages.tensors()[f"width-{width}/weight"], expected, rtol=1e-4, atol=1e-5
        )


def test_no_average_is_the_weights_themselves() -> None:
    module = small()
    averages = WeightAverages(module, decay=0.0)
    follow(averages, module, range(1, 4))
    assert torch.equal(averages.tensors()["weight"], module.weight)


@pytest.mark.parametrize(("applied", "expected"), [(None, "width-0.05/weight"), (0.1, "width-0.1/weight")])
def test_the_applied_average_is_lent_and_taken_back(applied: float | None, expected: str) -> None:
    module = small()
    averages = WeightAverages(module, 0.9, AverageSettings(widths=(0.05, 0.1), applied_width=applied))
    follow(averages, module, range(1, 6))
    own = module.weight.detach().clone()
    held = {name: tensor.clone() for name, tensor in averages.tensors().items()}
    with averages.applied():
        assert torch.equal(module.weight, held[expected])
    assert torch.equal(module.weight, own)
    assert all(torch.equal(tensor, held[name]) for name, tensor in averages.tensors().items())


@pytest.mark.parametrize("settings", KINDS)
def test_a_skipped_step_leaves_the_averages_and_another_takes_part(settings: AverageSettings) -> None:
    module = small()
    averages = WeightAverages(module, 0.999, settings)
    follow(averages, module, range(1, 4))
    before = {name: tensor.clone() for name, tensor in averages.tensors().items()}
    moved(module, 4)
    averages.update(4, torch.tensor(1.0))
    assert all(torch.equal(tensor, before[name]) for name, tensor in averages.tensors().items())
    averages.update(4, torch.tensor([False]))
    assert not any(torch.equal(tensor, before[name]) for name, tensor in averages.tensors().items())


@pytest.mark.parametrize("settings", KINDS)
def test_to_say_that_nothing_was_skipped_changes_no_bit(settings: AverageSettings) -> None:
    module = small()
    said, unsaid = (WeightAverages(module, 0.999, settings) for _ in range(2))
    for step in range(1, 30):
        moved(module, step)
        said.update(step, torch.tensor(0.0))
        unsaid.update(step)
    found = unsaid.tensors()
    assert all(torch.equal(tensor, found[name]) for name, tensor in said.tensors().items())


@pytest.mark.parametrize("settings", KINDS)
def test_resuming_is_exact(settings: AverageSettings, tmp_path: Path) -> None:
    module = small()
    unbroken = WeightAverages(module, 0.999, settings)
    follow(unbroken, module, range(1, 8))
    stored = {name: tensor.clone() for name, tensor in unbroken.tensors().items()}
    resumed_module = copy.deepcopy(module)
    resumed = WeightAverages(resumed_module, 0.999, settings)
    resumed.load(stored)
    follow(unbroken, module, range(8, 15))
    follow(resumed, resumed_module, range(8, 15))
    found = resumed.tensors()
    assert all(torch.equal(tensor, found[name]) for name, tensor in unbroken.tensors().items())


def test_only_trained_weights_are_averaged() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    module[0].requires_grad_(False)
    averages = WeightAverages(module, 0.9, TWO)
    assert set(averages.live) == {"1.weight", "1.bias"}
    assert set(averages.tensors()) == {f"width-{w}/1.{n}" for w in (0.05, 0.1) for n in ("weight", "bias")}


def test_a_snapshot_is_whole_and_holds_every_width(tmp_path: Path) -> None:
    module = small()
    averages = WeightAverages(module, 0.9, TWO)
    follow(averages, module, range(1, 4))
    path = save_snapshot(averages, 3, tmp_path / "averages")
    assert path == tmp_path / "averages" / "step-000003" and manifest_fault(path) is None
    stored = read_tensors(path / "averages.safetensors")
    assert stored.keys() == averages.tensors().keys()
    assert all(torch.equal(stored[name], tensor) for name, tensor in averages.tensors().items())
    save_snapshot(averages, 3, tmp_path / "averages")  # a resumed run writes it again
    assert [p.name for p in path.parent.iterdir()] == ["step-000003"]


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"widths": [0.0]}, "above 0 and at most"),
        ({"widths": [0.3]}, "above 0 and at most"),
        ({"widths": [0.1, 0.1]}, "each width once"),
        ({"widths": [0.1], "applied_width": 0.2}, "one of the widths"),
        ({"snapshot_every": 5}, "needs widths"),
    ],
)
def test_contradictory_settings_are_refused(tree: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        AverageSettings.model_validate(tree)

"""One step: means over the global batch, and metrics that only some samples have."""

from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from ldm.errors import UserError
from tests.support.tiny_training import PointLoss, assert_same_run, make_settings, train
from train.loop.steps import Batch, Periodic, accumulate_gradients, sums_of
from train.run.run import Run


class Tenths(PointLoss):
    """A second metric that only every other sample has, and a third that none has."""

    def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
        loss = super().forward(batch)["loss"]
        odd = torch.tensor([name in ("b", "d") for name in batch["sample_id"]])
        nothing = torch.full_like(loss, torch.nan)
        return {"loss_t0": torch.where(odd, loss, nothing), "loss": loss, "loss_t1": nothing}


@pytest.mark.parametrize("size", [1, 3, 5])
def test_a_mean_is_over_the_samples_that_have_a_value(size: int) -> None:
    module, x = Tenths(dropout=0), torch.randn(5, 4)
    weight = torch.tensor([1.0, 1, 1, 1, 0])
    batch = {"sample_id": list("abcde"), "x": x, "weight": weight}
    found = accumulate_gradients(module, batch, Accelerator(cpu=True), size)
    losses = module(batch)["loss"].detach()
    assert torch.allclose(found.metrics["loss"], losses[:4].mean())
    assert torch.allclose(found.metrics["loss_t0"], losses[[1, 3]].mean())
    assert found.metrics["loss_t1"].isnan()
    assert torch.allclose(found.sample_losses, losses) and found.sample_ids == list("abcde")
    gradient = [p.grad for p in module.parameters()]
    expected = torch.autograd.grad(module(batch)["loss"][:4].mean(), list(module.parameters()))
    assert all(
        g is not None and torch.allclose(g, e, atol=1e-6) for g, e in zip(gradient, expected, strict=True)
    )


def test_a_loss_that_is_nan_stays_so() -> None:
    sums = sums_of({"loss": torch.tensor([1.0, torch.nan])}, torch.ones(2))
    assert sums[0].isnan() and sums[1] == 2


def test_periods_and_the_end() -> None:
    assert [step for step in range(1, 8) if Periodic(3).due(step, 7)] == [3, 6, 7]
    assert [step for step in range(1, 8) if Periodic(3, also=5).due(step, 7)] == [3, 5, 6, 7]
    assert not Periodic(0).due(7, 7)


def test_accelerate_is_not_told_to_divide_the_gradient(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(make_settings(tmp_path / "plain"))
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    train(make_settings(tmp_path / "told"))
    assert_same_run(tmp_path / "told", tmp_path / "plain")


def test_passes_are_counted_by_the_batches_of_an_epoch(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(make_settings(tmp_path, global_batch_size=64, num_steps=3))
    assert "7 samples (3.0 epochs)" in capsys.readouterr().err


def test_a_seed_that_torch_does_not_take_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="seed = "):
        make_settings(tmp_path, seed=2**63)
    assert Run(make_settings(tmp_path, seed=2**63 - 1), planning=True).settings.seed == 2**63 - 1

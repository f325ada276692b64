"""Steps whose loss or gradient is not finite: weights stay, the steps are recorded, and too many end the run."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from ldm.data.order import BatchOrder
from ldm.errors import UserError
from ldm.io.files import read_tensors
from tests.support.launch_driver import Job
from tests.support.tiny_launch import train_together
from tests.support.tiny_training import (
    PointLoss,
    Points,
    assert_same_run,
    make_settings,
    outcome,
    train,
    train_with_stops,
)
from train.loop.averages import WeightAverages
from train.loop.optim import apply_gradients, make_optimizer, step_unless
from train.loop.state import TrainState
from train.loop.steps import Batch, accumulate_gradients, train_steps
from train.run.checkpoints import load_checkpoint, save_checkpoint
from train.settings.shared import OptimSettings

NAN, INF = float("nan"), float("inf")


def first_of_step(step: int) -> tuple[int, int]:
    """The epoch and index of the first sample of a step, from 1."""
    key = next(iter(BatchOrder(0, ["all"] * 7, 4, step - 1, step)))[0]
    return key.epoch, key.sample_index


def make_state(module: nn.Module) -> TrainState:
    return TrainState(
        module, make_optimizer(module.parameters(), OptimSettings()), WeightAverages(module, 0.5)
    )


def everything(state: TrainState) -> dict[str, Tensor]:
    """A copy of everything that a step may change."""
    found = dict(state.module.named_parameters()) | {
        f"average/{n}": t for n, t in state.average.tensors().items()
    }
    for number, slots in enumerate(state.optimizer.state.values()):
        found |= {f"optimizer/{number}/{name}": value for name, value in slots.items()}
    return {name: tensor.detach().clone() for name, tensor in found.items()}


class Steep(PointLoss):
    """A zero loss at the origin, with a gradient that is not finite there."""

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        size = batch["x"].square().sum(dim=1)
        return {"loss": (size * next(self.parameters()).sum().square()).sqrt()}


class Infinite(PointLoss):
    """An infinite loss with a finite gradient."""

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        return {"loss": super().forward(batch)["loss"] + INF}


@pytest.mark.parametrize("value", [NAN, INF, -INF, 1e38])
def test_a_step_that_is_not_finite_moves_nothing(tmp_path: Path, value: float) -> None:
    module = PointLoss(dropout=0)
    state, accelerator = make_state(module), Accelerator(cpu=True)
    good, bad = torch.randn(4, 4), torch.full((4, 4), value)
    batches = [
        {"sample_id": ["a", "b", "c", "d"], "x": x, "weight": torch.ones(4)} for x in (good, bad, bad, good)
    ]
    seen = []
    for record in train_steps(state, module, batches, accelerator, make_settings(tmp_path)):
        seen.append((record.skipped.item(), record.bad.item(), everything(state)))
    assert [flags for *flags, _ in seen] == [[False, False], [True, True], [True, True], [False, False]]
    assert state.step == 4
    assert len(seen[0][2]) == 4 * 5
    for name, tensor in seen[0][2].items():
        assert torch.equal(tensor, seen[2][2][name]), name
        assert not torch.equal(tensor, seen[3][2][name]) and torch.isfinite(tensor).all(), name


@pytest.mark.parametrize("kind", [Steep, Infinite])
def test_a_loss_or_a_gradient_that_is_not_finite_is_enough(tmp_path: Path, kind: type[PointLoss]) -> None:
    module = kind(dropout=0)
    state, accelerator = make_state(module), Accelerator(cpu=True)
    batch = {"sample_id": ["a"], "x": torch.zeros(1, 4), "weight": torch.ones(1)}
    before = [p.detach().clone() for p in module.parameters()]
    (record,) = train_steps(state, module, [batch], accelerator, make_settings(tmp_path))
    assert torch.isfinite(record.metrics["loss"]) != torch.isfinite(record.grad_norm)
    assert record.skipped and record.bad
    assert all(torch.equal(old, new) for old, new in zip(before, module.parameters(), strict=True))


@pytest.mark.parametrize(
    "make", [lambda p: torch.optim.AdamW(p, fused=True), lambda p: torch.optim.SGD(p, 0.1)]
)
def test_optimizers_that_do_not_know_of_skipping_skip_too(
    make: Callable[[list[nn.Parameter]], torch.optim.Optimizer],
) -> None:
    weight = nn.Parameter(torch.ones(3))
    optimizer = make([weight])
    for skipped, moved in ((True, False), (False, True)):
        weight.grad = torch.full((3,), NAN if skipped else 1.0)
        step_unless(torch.tensor(skipped), optimizer)
        assert (not torch.equal(weight, torch.ones(3))) == moved


def test_nothing_waits_for_the_device() -> None:
    """A tensor without values raises an error when it is read."""
    with FakeTensorMode():
        module = PointLoss(dropout=0)
        state, loss = make_state(module), torch.ones(())
        for parameter in module.parameters():
            parameter.grad = torch.zeros_like(parameter)
        _, skipped, bad = apply_gradients(state, list(module.parameters()), loss, 1.0)
        state.average.update(1, skipped)
        with pytest.raises(DataDependentOutputException):
            bool(bad)


# In a run


@pytest.fixture(scope="module")
def spoiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of eight steps; the third and the sixth are bad."""
    run_dir = tmp_path_factory.mktemp("spoiled")
    train(make_settings(run_dir, log_every=4), dataset=Points({first_of_step(3): NAN, first_of_step(6): INF}))
    return run_dir


def test_a_bad_step_is_counted_and_its_samples_are_written_down(spoiled: Path) -> None:
    rows = [json.loads(line) for line in (spoiled / "bad_steps.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [3, 6]
    assert [len(row["samples"]) for row in rows] == [4, 3]
    for row, step in zip(rows, (3, 6), strict=True):
        culprit = f"point-{first_of_step(step)[1]}"
        assert row["samples"].pop(culprit) == row["grad_norm"] == "nan"
        assert all(isinstance(loss, float) for loss in row["samples"].values())
    tensors, logged, numbers = outcome(spoiled)
    assert numbers == {"step": 8, "num_bad_steps": 2, "window": {}, "without_moments": []}
    assert all(torch.isfinite(tensor).all() for tensor in tensors.values())
    assert {float(t) for name, t in tensors.items() if name.endswith("/step")} == {6.0}
    assert [row["step"] for row in logged if "loss" in row] == [4, 8]


THIRD = next(iter(BatchOrder(0, ["all"] * 7, 4, 2, 3)))
"""The samples of the third step."""


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of two processes, `0` and `1`: that sample of the third step is spoiled."""
    folder = tmp_path_factory.mktemp("together")
    jobs: list[Job] = [
        {
            "do": "points",
            "run_dir": str(folder / str(spoiling)),
            "dropout": 0.0,
            "spoiled": [THIRD[spoiling].epoch, THIRD[spoiling].sample_index],
        }
        for spoiling in (0, 1)
    ]
    train_together(jobs)
    return folder


@pytest.mark.parametrize("spoiling", [0, 1])
def test_two_processes_skip_together_and_write_down_the_whole_batch(
    together: Path, tmp_path: Path, spoiling: int
) -> None:
    """Only one of two processes has the spoiled sample, since each takes every second sample of a batch."""
    turn, two = THIRD[spoiling], together / str(spoiling)
    (row,) = [json.loads(line) for line in (two / "bad_steps.jsonl").read_text().splitlines()]
    assert row["step"] == 3
    assert sorted(row["samples"]) == sorted(f"point-{key.sample_index}" for key in THIRD)
    assert [name for name, loss in row["samples"].items() if loss == "nan"] == [f"point-{turn.sample_index}"]
    spoiled = Points({(turn.epoch, turn.sample_index): NAN})
    train(make_settings(tmp_path / "one"), PointLoss(dropout=0), spoiled)
    (tensors, *rest), (others, *other_rest) = outcome(two), outcome(tmp_path / "one")
    assert rest[1] == other_rest[1]  # including the number of bad steps
    assert all(torch.allclose(tensors[name], others[name], atol=1e-4) for name in others)


@pytest.mark.parametrize("stops", [[2], [3], [6], [1, 3]])
def test_a_resumed_run_counts_as_an_unbroken_one(tmp_path: Path, spoiled: Path, stops: list[int]) -> None:
    dataset = Points({first_of_step(3): NAN, first_of_step(6): INF})
    train_with_stops(make_settings(tmp_path, log_every=4), stops, dataset)
    assert_same_run(tmp_path, spoiled)
    assert (tmp_path / "bad_steps.jsonl").read_text() == (spoiled / "bad_steps.jsonl").read_text()


def test_rows_of_steps_done_again_are_written_once(tmp_path: Path) -> None:
    def crash(number: int) -> None:
        if number == 5:
            raise RuntimeError

    dataset = Points({first_of_step(3): NAN, first_of_step(5): NAN})
    settings = make_settings(tmp_path, save_every=2)
    with pytest.raises(RuntimeError):
        train(settings, PointLoss(on_forward=crash), dataset)
    with (tmp_path / "bad_steps.jsonl").open("a") as file:
        file.write('{"step": 6, "sam')
    train(settings, dataset=dataset)
    rows = (tmp_path / "bad_steps.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows] == [3, 5]


def test_too_many_end_the_run_with_the_mend(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = Points({first_of_step(step): NAN for step in (2, 4, 5)})
    settings = make_settings(tmp_path, max_bad_steps=3, save_every=1)
    with pytest.raises(
        UserError, match=r"3 steps were skipped.*bad_steps.jsonl.*learning_rate.*--fork NEW_DIR"
    ):
        train(settings, dataset=dataset)
    assert "step 4 was skipped: its loss or gradient is not finite" in capsys.readouterr().err
    assert outcome(tmp_path)[2] == {"step": 4, "num_bad_steps": 2, "window": {}, "without_moments": []}
    assert train(make_settings(tmp_path, max_bad_steps=4, save_every=1), dataset=dataset).num_bad_steps == 3


def test_a_skipped_step_that_is_logged_has_no_loss(tmp_path: Path) -> None:
    settings = make_settings(tmp_path, num_steps=2, optim={"lr_schedule": "constant"})
    train(settings, dataset=Points({first_of_step(2): NAN}))
    rows = outcome(tmp_path)[1]
    assert rows[1] == {"step": 2, "skipped": True, "learning_rate": 0.01}


# fp16: the loss is scaled; a gradient that overflows lowers the scale and is not a bad step


def scaled_step(state: TrainState, module: PointLoss, x: Tensor) -> tuple[float, bool, bool]:
    assert state.scaler is not None
    loss = module({"x": x})["loss"].mean()
    state.scaler.scale(loss).backward()
    grad_norm, skipped, bad = apply_gradients(state, list(module.parameters()), loss.detach(), 1.0)
    state.optimizer.zero_grad()
    return float(grad_norm), bool(skipped), bool(bad)


def test_an_overflow_lowers_the_scale_and_is_no_bad_step(tmp_path: Path) -> None:
    module = PointLoss(dropout=0)
    state, x = make_state(module), torch.randn(4, 4)
    state.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**128 / 1.5, growth_interval=2)
    before = everything(state)
    assert scaled_step(state, module, x * 1e3)[1:] == (True, False)
    assert all(torch.equal(before[name], tensor) for name, tensor in list(everything(state).items())[:8])
    scale = state.scaler.get_scale()
    assert scale == pytest.approx(2.0**127 / 1.5)
    assert scaled_step(state, module, torch.full((1, 4), NAN))[1:] == (True, True)
    state.scaler.update(1024.0)
    grad_norm, *flags = scaled_step(state, module, x)
    assert flags == [False, False]
    moved = dict(module.named_parameters())["net.0.weight"]
    assert not torch.equal(before["net.0.weight"], moved)
    unscaled = make_state(PointLoss(dropout=0))
    accumulate_gradients(
        unscaled.module,
        {"sample_id": list("abcd"), "x": x, "weight": torch.ones(4)},
        Accelerator(cpu=True),
        4,
    )
    other_norm, *_ = apply_gradients(unscaled, list(unscaled.module.parameters()), torch.ones(()), 1.0)
    assert grad_norm == pytest.approx(float(other_norm))
    assert torch.allclose(dict(unscaled.module.named_parameters())["net.0.weight"], moved)
    state.step = 3
    checkpoint = save_checkpoint(state, tmp_path, 1)
    other = make_state(PointLoss())
    other.scaler = torch.amp.GradScaler("cpu")
    load_checkpoint(other, checkpoint)
    assert other.scaler.state_dict() == state.scaler.state_dict()
    assert other.scaler.state_dict()["_growth_tracker"] == 1
    assert read_tensors(checkpoint / "weights.safetensors").keys() == dict(module.named_parameters()).keys()

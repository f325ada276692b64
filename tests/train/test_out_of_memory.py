"""If the device runs out of memory, micro-batches are halved and the step is repeated, with the same result."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from ldm.config import to_yaml
from ldm.errors import UserError
from tests.support.tiny_training import PointLoss, assert_same_run, make_settings, outcome, train
from train.loop.steps import Batch
from train.run.program import run_program
from train.settings.shared import TrainSettings

CUDA = torch.OutOfMemoryError("the device is full")
CPU = RuntimeError("[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory")


class Large(PointLoss):
    """Runs out of memory, after some work, when given more than `limit` samples."""

    def __init__(self, limit: int, error: RuntimeError = CUDA) -> None:
        super().__init__(dropout=0)
        self.limit, self.error = limit, error
        self.tries: list[int] = []

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        self.tries.append(len(batch["weight"]))
        losses = super().forward(batch)
        if len(batch["weight"]) > self.limit or (self.limit == 2 and len(self.tries) == 8):
            raise self.error
        return losses


@pytest.mark.parametrize("error", [CUDA, CPU], ids=["CUDA", "CPU"])
def test_micro_batches_are_halved_and_the_step_is_done_again(
    tmp_path: Path, error: RuntimeError, capsys: pytest.CaptureFixture[str]
) -> None:
    module = Large(limit=1, error=error)
    train(make_settings(tmp_path / "halved", max_micro_batch=64), module)
    assert module.tries[:7] == [4, 2, 1, 1, 1, 1, 1]  # one at a time from then on
    assert "out of memory: from now on at most 1 samples at once" in capsys.readouterr().err
    train(make_settings(tmp_path / "one", max_micro_batch=1), PointLoss(dropout=0))
    assert_same_run(tmp_path / "halved", tmp_path / "one")


def test_what_was_added_up_before_the_memory_ran_out_is_forgotten(tmp_path: Path) -> None:
    """It runs out in the second micro-batch of a step."""
    module = Large(limit=2)
    train(make_settings(tmp_path / "late", max_micro_batch=2), module)
    assert module.tries[6:12] == [2, 1, 1, 1, 1, 1]
    train(make_settings(tmp_path / "never", max_micro_batch=2), PointLoss(dropout=0))
    late, never = outcome(tmp_path / "late")[0], outcome(tmp_path / "never")[0]
    assert all(torch.allclose(late[name], never[name], rtol=1e-3, atol=1e-6) for name in late)


def test_one_sample_too_many_is_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "c.yaml"
    config.write_text(to_yaml(make_settings(tmp_path / "run")))

    def program(settings: TrainSettings) -> None:
        train(settings, Large(limit=0))

    assert run_program(TrainSettings, program, [str(config)]) == 2
    assert (
        capsys.readouterr()
        .err.splitlines()[-1]
        .startswith("error: out of memory with 1 samples at once: use smaller")
    )

    def other_program(settings: TrainSettings) -> None:
        raise error

    for error in (torch.OutOfMemoryError("CUDA out of memory.\nmore"), CPU):
        assert run_program(TrainSettings, other_program, [str(config)]) == 2
        first = str(error).splitlines()[0]
        assert capsys.readouterr().err == f"error: the device is out of memory: {first}\n"
    error = RuntimeError("a bug")
    with pytest.raises(RuntimeError, match="a bug"):
        run_program(TrainSettings, other_program, [str(config)])


def test_samples_that_are_compared_are_not_parted(tmp_path: Path) -> None:
    module = Large(limit=1)
    with pytest.raises(UserError, match="with 4 samples at once: choose a smaller global_batch_size"):
        train(make_settings(tmp_path), module, may_split=False)
    assert module.tries == [4]

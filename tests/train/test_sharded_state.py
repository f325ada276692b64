"""A sharded state (FSDP2, two processes with gloo) trains, saves and loads like an unsharded one."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ldm.errors import UserError
from ldm.io.files import read_tensors
from ldm.io.json_files import read_json
from tests.support.launch_driver import BlockLoss, Job, train_blocks
from tests.support.tiny_launch import train_together
from tests.support.tiny_training import make_settings
from train.loop.sharding import blocks
from train.run.best import read_best
from train.run.checkpoints import load_checkpoint
from train.run.devices import asked_to_shard
from train.run.run import Run

CHANGES: dict[str, Any] = {
    "save_every": 4,
    "preview_every": 4,
    "keep_checkpoints": 3,
    "max_micro_batch": 1,
    "validation": {"every": 2, "keep_best": True},
    "optim": {"average": {"widths": [0.1, 0.2], "snapshot_every": 4}},
}
SHARDED = {**CHANGES, "sharding": "full"}
MEASURED: dict[str, Any] = {"preview_every": 100, "validation": {"every": 1}, "optim": {"ema_decay": 0.9}}
"""Only validation happens between the steps, because everything else that gathers weights reshards them."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`whole` is a run of one process; two processes made `shards`, and `resumed` from step 4 of the first.

    `measured` was made by two processes too, with the settings MEASURED.
    `copies-NAME`: the last checkpoints of `whole` and `shards`, loaded into shards and saved again.
    """
    folder = tmp_path_factory.mktemp("sharded")
    train_blocks(folder / "whole", dict(CHANGES))
    copy_of_the_half(folder / "whole", folder / "resumed")
    jobs: list[Job] = [
        {"do": "blocks", "run_dir": str(folder / name), "changes": SHARDED} for name in ("shards", "resumed")
    ]
    jobs += [
        {
            "do": "copy",
            "run_dir": str(folder / name),
            "changes": SHARDED,
            "to": str(folder / f"copies-{name}"),
        }
        for name in ("whole", "shards")
    ]
    measured = {**MEASURED, "sharding": "full"}
    jobs.append({"do": "blocks", "run_dir": str(folder / "measured"), "changes": measured})
    train_together(jobs)
    return folder


def copy_of_the_half(run_dir: Path, dest: Path) -> None:
    """A run as it was after step 4."""
    shutil.copytree(run_dir, dest)
    shutil.rmtree(dest / "checkpoints/step-000008")


def tensors_of(checkpoint: Path) -> dict[str, Tensor]:
    return {
        f"{path.stem}/{name}": tensor
        for path in checkpoint.glob("*.safetensors")
        for name, tensor in read_tensors(path).items()
    }


def assert_close(folder: Path, other: Path) -> None:
    """Two checkpoints have the same names and shapes, and the same values up to rounding."""
    one, two = tensors_of(folder), tensors_of(other)
    assert {name: t.shape for name, t in one.items()} == {name: t.shape for name, t in two.items()}
    for name, tensor in one.items():
        torch.testing.assert_close(
            two[name], tensor, rtol=1e-4, atol=1e-6, msg=lambda text, n=name: f"{n}: {text}"
        )


def rows(run_dir: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", ["shards", "resumed"])
def test_shards_train_as_a_whole_state(folder: Path, name: str) -> None:
    """Gradients, clipping, moments and averages differ only by rounding, with or without validation between steps."""
    for step in (4, 8):
        part = f"checkpoints/step-{step:06d}"
        assert_close(folder / "whole" / part, folder / name / part)
    one, two = rows(folder / "whole"), rows(folder / name)
    for key in ("loss", "validation_loss", "grad_norm"):
        assert [row[key] for row in two if key in row] == pytest.approx(
            [row[key] for row in one if key in row], rel=1e-4
        )
    assert len(tensors_of(folder / name / "checkpoints/step-000008")) == 7 + 2 * 7 + 3 * 7


def test_what_one_process_draws_and_writes_of_shards_is_whole(folder: Path) -> None:
    """Previews, the result, the best weights and the snapshots of the averages."""
    for name in ("previews/step-000004.png", "previews/step-000008.png", "result.json"):
        one, two = (json.loads((folder / run / name).read_text()) for run in ("whole", "shards"))
        assert len(one) == 14 and two == pytest.approx(one, rel=1e-4)
    assert_close(folder / "whole/averages/step-000008", folder / "shards/averages/step-000008")
    (one_step, one), (two_step, two) = read_best(folder / "whole"), read_best(folder / "shards")
    assert one_step == two_step
    for key, tensor in one.items():
        torch.testing.assert_close(two[key], tensor, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["whole", "shards"])
def test_a_checkpoint_through_shards_is_the_same_to_the_last_bit(folder: Path, name: str) -> None:
    before, after = folder / name / "checkpoints/step-000008", folder / f"copies-{name}/step-000008"
    one, two = tensors_of(before), tensors_of(after)
    assert one.keys() == two.keys()
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert read_json(before / "state.json") == read_json(after / "state.json")


def test_moments_come_back_in_the_layout_of_their_weights(folder: Path) -> None:
    """One process without shards, but with channels_last, which a fused optimizer needs kept to resume exactly."""
    copy_of_the_half(folder / "whole", folder / "alone")
    train_blocks(folder / "alone", dict(CHANGES))
    one, two = (tensors_of(folder / run / "checkpoints/step-000008") for run in ("whole", "alone"))
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_a_measurement_leaves_the_trained_weights_in_the_shards(folder: Path, tmp_path: Path) -> None:
    train_blocks(tmp_path, dict(MEASURED))
    one, two = (
        [row["loss"] for row in rows(run) if "loss" in row] for run in (tmp_path, folder / "measured")
    )
    assert two == pytest.approx(one, rel=1e-5)
    assert_close(tmp_path / "checkpoints/step-000008", folder / "measured/checkpoints/step-000008")


def test_one_process_goes_on_from_shards(folder: Path) -> None:
    state = Run(make_settings(folder / "fresh", **CHANGES)).start(BlockLoss())
    load_checkpoint(state, folder / "shards/checkpoints/step-000008")
    saved = read_tensors(folder / "shards/checkpoints/step-000008/weights.safetensors")
    assert all(torch.equal(p, saved[name]) for name, p in state.module.named_parameters() if p.requires_grad)
    copy_of_the_half(folder / "shards", folder / "handed-over")
    train_blocks(folder / "handed-over", dict(CHANGES))
    assert_close(folder / "whole/checkpoints/step-000008", folder / "handed-over/checkpoints/step-000008")


@pytest.mark.parametrize(
    ("changes", "hint"),
    [
        ({"program": "autoencoder", "validation": {}}, "only the denoiser"),
        ({"mixed_precision": "fp16"}, "mixed_precision=bf16"),
        ({"optim": {"optimizer": "adamw_8bit"}}, "use adamw"),
        ({"optim": {"moments": "8bit"}}, "sharding with optim.moments = '8bit': use float32"),
    ],
)
def test_what_does_not_go_with_shards_is_refused(tmp_path: Path, changes: dict[str, Any], hint: str) -> None:
    with pytest.raises(UserError, match=hint):
        asked_to_shard(make_settings(tmp_path, sharding="full", **changes))


def test_blocks_are_those_of_the_outermost_lists() -> None:
    module = BlockLoss()
    assert list(blocks(module)) == [module.blocks[0], module.blocks[2]]
    nested = torch.nn.ModuleList([torch.nn.Sequential(torch.nn.ModuleList([torch.nn.Linear(1, 1)]))])
    assert list(blocks(torch.nn.Sequential(nested))) == [nested[0]]

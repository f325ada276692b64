"""Launchers: two that connect, a worker that dies and restarts, and the files for `accelerate launch` and Slurm."""

import os
import re
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser, prepare_multi_gpu_env

from ldm.errors import UserError
from tests.support.launch_driver import Job
from tests.support.tiny_launch import ROOT, TORCHRUN, driver, finish, start
from tests.support.tiny_training import PointLoss, assert_same_run, make_settings, outcome, train
from train.run.devices import asked_to_shard

CHANGES: dict[str, Any] = {"save_every": 2}
DROPOUT = 0.0  # since each process draws its own masks

SRUN = """#!/bin/bash
# two machines, each with its own name
"$@" & first=$!
"$@" & second=$!
wait $first && wait $second
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def assert_trained_as_one(run_dir: Path, one: Path) -> None:
    """The losses agree to 1e-5, and the weights to a thousandth of how far they moved."""
    (tensors, rows, _), (other, other_rows, _) = outcome(run_dir), outcome(one)
    for key in ("loss", "validation_loss"):
        found, wanted = ([row[key] for row in each if key in row] for each in (rows, other_rows))
        assert found == pytest.approx(wanted, rel=1e-5)
    names = [name for name in other if name.startswith("weights/")]
    a, b = (torch.cat([found[name].flatten() for name in names]) for found in (tensors, other))
    start_weights = dict(PointLoss(DROPOUT).named_parameters())
    first = torch.cat([start_weights[name.partition("/")[2]].detach().flatten() for name in names])
    assert (b - first).norm() > 0.01
    assert (a - b).norm() <= 1e-3 * (b - first).norm()


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process."""
    run_dir = tmp_path_factory.mktemp("one")
    train(make_settings(run_dir, **CHANGES), PointLoss(DROPOUT))
    return run_dir


def points(run_dir: Path, **more: Any) -> Job:
    return {"do": "points", "run_dir": str(run_dir), "changes": CHANGES, **more}


@pytest.mark.slow
def test_two_launchers_that_meet_train_as_one_process(tmp_path: Path, one: Path) -> None:
    jobs = driver(tmp_path / "jobs.json", [points(tmp_path / "run", dropout=DROPOUT)])
    place = ["--nnodes", "2", "--nproc-per-node", "1", "--master-addr", "127.0.0.1"]
    place += ["--master-port", str(free_port())]
    said = finish(*(start([*TORCHRUN, *place, "--node-rank", rank, *jobs]) for rank in ("0", "1")))
    assert " on cpu x 2; " in said[0]
    assert_trained_as_one(tmp_path / "run", one)


@pytest.mark.slow
def test_a_worker_that_is_killed_comes_back_and_loses_nothing(tmp_path: Path) -> None:
    """Killed in step 6, the run resumes from the checkpoint of step 4 and ends like an undisturbed one."""
    jobs = [points(tmp_path / "whole"), points(tmp_path / "killed", kill=[1, 5])]
    command = [*TORCHRUN, "--standalone", "--max-restarts", "1", "--nproc-per-node", "2"]
    environment = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}  # pytorch/pytorch#135712
    said = finish(start([*command, *driver(tmp_path / "jobs.json", jobs)], **environment))
    assert (tmp_path / "killed.killed").exists()
    found = re.findall(r"(starting|resuming at step \d+): [^\n]*/(whole|killed)\n", said[0])
    assert found == [
        ("starting", "whole"),
        ("starting", "killed"),
        ("resuming at step 8", "whole"),
        ("resuming at step 4", "killed"),
    ]
    assert_same_run(tmp_path / "killed", tmp_path / "whole")


@pytest.mark.slow
def test_the_slurm_file_starts_launchers_that_meet(tmp_path: Path, one: Path) -> None:
    """Slurm's two commands simulate a cluster of two machines, both of which are this one."""
    commands = {
        "srun": SRUN,
        "scontrol": "#!/bin/bash\necho 127.0.0.1\n",
        "torchrun": f'#!/bin/bash\nexec {" ".join(TORCHRUN)} "$@"\n',
    }
    for name, text in commands.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    jobs = driver(tmp_path / "jobs.json", [points(tmp_path / "run", dropout=DROPOUT)])
    environment = {
        "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
        "SLURM_JOB_NODELIST": "node[1-2]",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_JOB_ID": str(free_port()),
        "PROGRAM": jobs[1],
    }
    finish(start(["bash", str(ROOT / "configs/launch/slurm.sbatch"), *jobs[2:]], **environment))
    assert_trained_as_one(tmp_path / "run", one)


@pytest.mark.parametrize(("name", "kind"), [("ddp", "MULTI_GPU"), ("fsdp2", "FSDP")])
def test_accelerate_reads_its_files(name: str, kind: str) -> None:
    config = load_config_from_file(str(ROOT / f"configs/accelerate/{name}.yaml"))
    assert isinstance(config, ClusterConfig)
    assert (config.distributed_type, config.use_cpu, config.num_machines) == (kind, False, 1)
    assert (config.fsdp_config or {}).get("fsdp_version") == (2 if name == "fsdp2" else None)


def test_accelerate_launch_asks_for_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`asked_to_shard` reads the environment variables that fsdp2.yaml sets."""
    settings = make_settings(tmp_path)
    assert not asked_to_shard(settings)
    file = ROOT / "configs/accelerate/fsdp2.yaml"
    arguments = launch_command_parser().parse_args(
        ["--config_file", str(file), "-m", "train.denoiser", "config"]
    )
    for name, value in prepare_multi_gpu_env(_validate_launch_command(arguments)[0]).items():
        if name.startswith(("ACCELERATE_", "FSDP_")):
            monkeypatch.setenv(name, value)
    assert asked_to_shard(settings)
    monkeypatch.setenv("FSDP_VERSION", "1")
    with pytest.raises(UserError, match="set fsdp_version: 2"):
        asked_to_shard(settings)

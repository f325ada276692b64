"""The program `denoiser` on a stream: exact resuming in the middle of a shard, two processes, wrong settings."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from ldm.data.stream_shards import list_shards
from ldm.data.streaming import shard_order
from tests.support.tiny_runs import COMMON, DENOISER, TEXT_ENCODER, train_parts
from tests.support.tiny_streams import data_settings, make_stream, one_epoch, write_parquet, write_shards
from train import denoiser, text_encoder
from train.run.history import CLOCKS

ROOT = Path(__file__).parents[2]
LAUNCHER = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
NUM_STEPS = 11
"""An epoch of `write_shards` is eight steps."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards, trained parts, and an uninterrupted run `whole`."""
    folder = tmp_path_factory.mktemp("streams")
    train_parts(folder)
    write_shards(folder / "shards")
    assert denoiser.main([str(make_config(folder, "whole"))]) == 0
    return folder


def make_config(folder: Path, name: str, shards: str = "shards", **changes: Any) -> Path:
    data = data_settings(folder / shards).model_dump(mode="json", exclude_unset=True)
    tree: dict[str, Any] = {
        "parts": {part: str(folder / part) for part in ("autoencoder", "text_encoder")},
        "num_steps": NUM_STEPS,
        "save_every": 1,
        "keep_checkpoints": NUM_STEPS,
        "cache": {"enabled": False, "folder": str(folder / "cache")},
        "data": data,
        **changes,
    }
    return write_tree(folder, name, {**DENOISER, **tree})


def write_tree(folder: Path, name: str, tree: dict[str, Any]) -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({**COMMON, "run_dir": str(folder / name), **tree}))
    return path


def rows(run_dir: Path) -> list[dict[str, float]]:
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in CLOCKS} for line in lines]


def tensors(run_dir: Path) -> dict[str, torch.Tensor]:
    newest = run_dir / f"checkpoints/step-{NUM_STEPS:06d}"
    return {
        f"{path.stem}/{k}": v for path in newest.glob("*.safetensors") for k, v in load_file(path).items()
    }


def saved_stream(run_dir: Path, step: int) -> dict[str, Any]:
    state: dict[str, Any] = json.loads((run_dir / f"checkpoints/step-{step:06d}/state.json").read_text())
    stream: dict[str, Any] = state["stream"]
    return stream


def assert_same_run(first: Path, second: Path) -> None:
    """To the last bit."""
    assert rows(first) == rows(second)
    assert saved_stream(first, NUM_STEPS) == saved_stream(second, NUM_STEPS)
    a, b = tensors(first), tensors(second)
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def broken_at(folder: Path, name: str, step: int) -> Path:
    """The configuration of a run that was killed after `step` steps of `whole`."""
    shutil.copytree(folder / "whole", folder / name)
    for later in range(step + 1, NUM_STEPS + 1):
        shutil.rmtree(folder / name / f"checkpoints/step-{later:06d}")
    return make_config(folder, name, save_every=NUM_STEPS)


def test_the_checkpoint_says_where_in_the_stream_the_run_is(folder: Path) -> None:
    places = [saved_stream(folder / "whole", step) for step in range(1, NUM_STEPS + 1)]
    sizes = [len(make_stream_batches(folder, epoch)) for epoch in (0, 1)]
    assert [place["epoch"] for place in places] == [0] * sizes[0] + [1] * (NUM_STEPS - sizes[0])
    assert places[0]["shard"] == 0 and places[0]["batch"] == 1 and places[0]["contents"]
    assert (places[sizes[0] - 1]["shard"], places[sizes[0]]["shard"]) == (3, 0)


def make_stream_batches(folder: Path, epoch: int) -> list[list[str]]:
    return one_epoch(make_stream(folder / "shards"), epoch)


def test_the_run_leaves_a_report_and_a_model(folder: Path) -> None:
    report = json.loads((folder / "whole/data_report.json").read_text())
    assert (report["num_shards_seen"], report["num_found"], report["num_used"]) == (4, 17, 17)
    fates = json.loads((folder / "whole" / report["shards"][0]["report"]).read_text())["samples"]
    assert all(fate["num_tokens"] for fate in fates)
    assert (folder / "whole/pipeline/model_index.json").is_file()


@pytest.mark.parametrize("step", [1, 4, 8, 10])
def test_a_killed_run_goes_on_to_the_last_bit(folder: Path, step: int) -> None:
    config = broken_at(folder, f"broken-{step}", step)
    assert denoiser.main([str(config)]) == 0
    assert_same_run(folder / "whole", folder / f"broken-{step}")


def test_a_signal_in_the_middle_of_a_shard_saves_the_place(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seldom = {"save_every": NUM_STEPS, "data": with_workers(folder)}
    config = make_config(folder, "stopped", preview_every=2, **seldom)
    draw = denoiser.write_preview

    def draw_and_interrupt(*args: Any, **options: Any) -> None:
        draw(*args, **options)
        signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(denoiser, "write_preview", draw_and_interrupt)
        assert denoiser.main([str(config)]) == 128 + signal.SIGTERM
    assert denoiser.main([str(make_config(folder, "stopped", **seldom))]) == 0
    assert "resuming at step 2" in capsys.readouterr().err
    assert_same_run(folder / "whole", folder / "stopped")


def with_workers(folder: Path) -> dict[str, Any]:
    """One loader process, which is a few batches ahead of the steps."""
    settings = data_settings(folder / "shards", num_workers=1)
    return settings.model_dump(mode="json", exclude_unset=True)


def test_a_changed_shard_ends_the_resumed_run(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_shards(folder / "changed")
    config = make_config(folder, "on-changed", "changed", num_steps=3)
    assert denoiser.main([str(config)]) == 0
    shards = list_shards(data_settings(folder / "changed").all_sources())
    place = saved_stream(folder / "on-changed", 3)["shard"]
    begun = shards[shard_order(len(shards), seed=0, epoch=0)[place]]
    write_parquet(begun.path, range(50, 54))
    assert denoiser.main([str(make_config(folder, "on-changed", "changed", num_steps=6))]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("error: ") and f"{begun.path} has changed since this run first read it" in said


def test_other_programs_do_not_stream(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = {"path": str(folder / "shards"), "height": 16, "width": 16, "streaming": True}
    config = write_tree(folder, "text", {**TEXT_ENCODER, "data": data})
    assert text_encoder.main([str(config)]) == 2
    assert "only `denoiser` can stream" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("cache.enabled=true", "set cache.enabled=false, or data.streaming=false"),
        ("preview.prompts=[]", "set preview.prompts"),
        ("data.holdout_fraction=0.1", "set holdout_fraction=0"),
    ],
)
def test_what_needs_all_samples_is_refused(
    folder: Path, override: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert denoiser.main([str(make_config(folder, "refused")), override]) == 2
    assert said in capsys.readouterr().err.strip().splitlines()[-1]
    assert not (folder / "refused").exists()


@pytest.mark.slow
def test_two_processes_train_as_one(folder: Path) -> None:
    """Each decodes its share of a shard, and both follow the same order; a batch of one leaves the second empty."""
    config = make_config(folder, "two", cache={"enabled": False, "folder": str(folder / "cache-of-two")})
    command = [*LAUNCHER, "-m", "train.denoiser", str(config)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    losses = [[row["loss"] for row in rows(folder / name)] for name in ("two", "whole")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert saved_stream(folder / "two", NUM_STEPS) == saved_stream(folder / "whole", NUM_STEPS)
    assert json.loads((folder / "two/data_report.json").read_text())["num_used"] == 17

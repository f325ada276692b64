"""`--plan`: its counts match the run, its measurements are real, and it writes nothing."""

import json
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from accelerate import Accelerator
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner

from ldm.cli.app import app
from ldm.config import load_settings
from ldm.data.order import epoch_batches
from ldm.errors import UserError
from ldm.models.loading.model import save_parts
from tests.support.tiny_models import make_sd1
from tests.support.tiny_runs import AUTOENCODER, COMMON, write_config, write_squares
from tests.support.tiny_training import make_settings
from train import autoencoder, denoiser
from train.data.denoiser_data import read_training_data
from train.data.latents import latent_samples
from train.loop.eight_bits import BLOCK, SMALLEST
from train.loop.steps import micro_batches
from train.plan.other_load import OtherLoad
from train.plan.plan import Plan, make_plan, most_checkpoints
from train.plan.step_cost import forget_peak, memory_in_use, peak_memory
from train.run.run import Run
from train.settings.denoiser import DenoiserSettings

ROOT = Path(__file__).parents[2]
PROGRAM: dict[str, Any] = {"program": "denoiser", "preview": {"prompts": ["red"], "num_inference_steps": 2}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model, seven squares, and in `mixed` a wide image besides."""
    folder = tmp_path_factory.mktemp("plans")
    save_parts(make_sd1(folder / "tokenizer"), folder / "base")
    write_squares(folder / "data")
    mixed = write_squares(folder / "mixed")
    Image.new("RGB", (24, 12), "white").save(mixed / "wide.png")
    with (mixed / "metadata.jsonl").open("a") as file:
        file.write("\n" + json.dumps({"file_name": "wide.png", "text": "white"}))
    return folder


def make_config(folder: Path, name: str, data: dict[str, Any] | None = None, **changes: Any) -> Path:
    """A configuration with its own run directory and cache."""
    own: dict[str, Any] = {"base": str(folder / "base"), "cache": {"folder": str(folder / f"{name}-cache")}}
    own["data"] = {"path": str(folder / "data"), "height": 16, "width": 16, **(data or {})}
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({**COMMON, **PROGRAM, "run_dir": str(folder / name), **own, **changes}))
    return path


def plan_of(config: Path) -> Plan:
    settings = load_settings(DenoiserSettings, config)
    run = Run(settings, planning=True)
    loss, _ = denoiser.make_model(run, settings)
    data = read_training_data(run, settings, loss)
    return make_plan(
        run, settings, loss, data, partial(latent_samples, settings, loss.parts.autoencoder, data.train)
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def shards(cache: Path) -> list[torch.Tensor]:
    return [tensor for path in cache.rglob("*.safetensors") for tensor in load_file(path).values()]


def test_the_plan_counts_what_the_run_then_makes(folder: Path) -> None:
    """Parameters, bytes of the cache and of a checkpoint are compared with the files of the run."""
    config = make_config(folder, "lora", trainable="lora", num_steps=3)
    plan = plan_of(config)
    assert (plan.images.num_lacking, plan.captions.num_lacking) == (
        7,
        15,
    )  # two captions each, and the empty one
    assert denoiser.main([str(config)]) == 0
    written = shards(folder / "lora-cache")
    assert plan.images.num_bytes + plan.captions.num_bytes == sum(tensor.nbytes for tensor in written)
    checkpoint = folder / "lora/checkpoints/step-000003"
    files = {path.stem: load_file(path) for path in checkpoint.glob("*.safetensors")}
    assert plan.num_trained == sum(tensor.numel() for tensor in files["weights"].values())
    assert plan.checkpoint_bytes == sum(t.nbytes for group in files.values() for t in group.values())
    frozen = [
        tensor for path in (folder / "base").rglob("*.safetensors") for tensor in load_file(path).values()
    ]
    assert plan.num_parameters == plan.num_trained + sum(tensor.numel() for tensor in frozen)
    again = plan_of(make_config(folder, "lora", trainable="lora", num_steps=5))
    assert (again.start_step, again.images.num_lacking, again.captions.num_lacking) == (3, 0, 0)
    assert again.encode_sec == again.images.num_bytes == 0 and again.images.num_wanted == 7
    assert "num_steps was 3, now 5" in again.notes[0]
    assert again.steps_sec == pytest.approx(2 * again.step.step_sec)


def test_steps_and_pieces_are_those_of_the_order_and_the_loop(folder: Path) -> None:
    data = {"path": str(folder / "mixed"), "buckets": True}
    plan = plan_of(make_config(folder, "mixed-run", data, max_micro_batch=3))
    assert plan.buckets == {(16, 16): 7, (12, 20): 1}
    sizes = [(16, 16)] * 7 + [(12, 20)]
    batches = epoch_batches(0, seed=0, bucket_of=sizes, global_batch_size=4)
    assert plan.steps_per_epoch == len(batches) == 3 and plan.num_passes == 2.0
    pieces = list(micro_batches({"weight": list(range(4))}, 3))
    assert (plan.step.num_samples, plan.step.size) == (4, (16, 16))
    assert (plan.step.micro_batch, plan.step.num_micro_batches) == (3, len(pieces))
    assert plan.step.num_timed == 5 and plan.step.step_sec > 0 and plan.images.each_sec > 0
    assert plan.step.peak_bytes > plan.step.growth_bytes


def test_a_plan_writes_nothing_but_the_memo(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = make_config(folder, "dry")
    before = contents(folder)
    assert denoiser.main([str(config), "--plan"]) == 0
    new = contents(folder).keys() - before.keys()
    assert new and all(name.startswith("dry-cache/facts/") for name in new)
    assert {name: data for name, data in contents(folder).items() if name not in new} == before
    said = capsys.readouterr().out
    for line in ("samples:    7 found: 7 to train on", "epoch:      2 steps; 3.0", "lacks 7 of 7 images"):
        assert line in said
    assert denoiser.main([str(config), "num_steps=3"]) == 0
    (folder / "dry/run.lock").unlink()
    before = contents(folder)
    assert denoiser.main([str(config), "num_steps=3", "--plan"]) == 0
    assert contents(folder) == before
    assert "is finished" in capsys.readouterr().out


def test_without_a_cache_the_images_are_encoded_in_each_step(folder: Path) -> None:
    plan = plan_of(make_config(folder, "uncached", cache={"enabled": False}))
    assert (plan.images.num_wanted, plan.captions.num_wanted, plan.encode_sec) == (0, 0, 0.0)
    assert plan.step.step_sec > 0


def test_what_may_not_be_meant_so_is_noted(folder: Path) -> None:
    warmup = {"num_warmup_steps": 0}
    config = make_config(
        folder, "noted", {"holdout_fraction": 0.4}, num_steps=1, global_batch_size=64, optim=warmup
    )
    notes = "\n".join(plan_of(config).notes)
    assert "no bucket fills global_batch_size = 64" in notes and "set validation.every" in notes


def test_previews_and_validation_are_priced(folder: Path) -> None:
    """Of steps 1 to 6, previews are due at 4 and 6, validation at 3 and 6, measured images at 2, 4 and 6."""
    config = make_config(
        folder,
        "priced",
        {"holdout_fraction": 0.4},
        preview_every=4,
        validation={"every": 3, "evaluate_every": 2, "num_images": 10},
        preview={"prompts": ["red", "blue"], "num_inference_steps": 30},
    )
    plan = plan_of(config)
    cost = plan.previews
    assert (cost.num_images, cost.num_previews, cost.num_validations) == (2, 2, 2)
    assert cost.size == (16, 16) and cost.previews_sec == 4 * cost.image_sec > 0 < cost.validations_sec
    assert "2 x 2 images of 16 x 16" in str(plan) and " of previews" in str(plan)
    assert cost.num_evaluations == 3 and cost.evaluations_sec == pytest.approx(30 * cost.image_sec)
    assert " of evaluation" in str(plan) and "3 times, " in str(plan)


def test_a_plan_says_how_busy_the_machine_was() -> None:
    accelerator, load = Accelerator(cpu=True), OtherLoad(num_cores=2)
    command = [sys.executable, "-c", "while True: pass"]
    other = subprocess.Popen(command)
    try:
        with load.measuring(accelerator):
            time.sleep(1)
    finally:
        other.kill()
        other.wait()
    assert load.cores_used > 0.2 and load.matters and "of 2 cores" in str(load)


def test_the_time_of_the_run_itself_is_not_of_others() -> None:
    load = OtherLoad(num_cores=4)
    load.note(seconds=5.0, busy=3.0, own=2.5)
    assert load.cores_used == pytest.approx(0.1) and not load.matters
    load.note(seconds=5.0, busy=12.0, own=2.0)
    assert load.cores_used == pytest.approx(2.0) and load.matters


@pytest.mark.parametrize(("keep_every", "expected"), [(None, 2), (4, 4)])
def test_the_checkpoints_kept_and_the_one_being_written(
    tmp_path: Path, keep_every: int | None, expected: int
) -> None:
    """Of steps 3, 6, 9, 10 the last two are kept; with multiples of 4 kept as well, 4 and 8 too."""
    settings = make_settings(tmp_path, num_steps=10, save_every=3, keep_checkpoints=2, keep_every=keep_every)
    assert most_checkpoints(settings) == expected + 1


def test_the_peak_of_memory_is_seen_after_it_is_over() -> None:
    device, size = torch.device("cpu"), 100_000_000
    before = memory_in_use(device)
    forget_peak(device)
    torch.ones(size // 4).add_(1)
    assert peak_memory(device) >= before + 0.9 * size


def test_where_there_is_no_plan_one_line_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_config(
        tmp_path / "a.yaml", AUTOENCODER, write_squares(tmp_path / "data"), tmp_path / "run"
    )
    assert autoencoder.main([str(config), "--plan"]) == 2
    assert capsys.readouterr().err == (
        "error: --plan works only with the program denoiser, not autoencoder: leave it out\n"
    )
    assert not (tmp_path / "run").exists()


def test_what_training_would_refuse_the_plan_refuses(folder: Path) -> None:
    config = make_config(folder, "refused", {"holdout_fraction": 1e-9}, validation={"every": 2})
    with pytest.raises(UserError, match=r"holds out none of 7 images, but validation\.every needs"):
        denoiser.plan(load_settings(DenoiserSettings, config))


@pytest.mark.slow
def test_the_command_starts_the_program(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    config = make_config(folder, "by-command")
    assert CliRunner().invoke(app, ["train", str(config), "--plan"]).exit_code == 0
    assert "2 steps; 3.0 epochs in total" in capfd.readouterr().out
    assert not (folder / "by-command").exists()


@pytest.mark.slow
def test_two_processes_plan_together(folder: Path) -> None:
    config = make_config(folder, "two", global_batch_size=5)
    command = [sys.executable, "-m", "ldm", "train", str(config), "--plan", "--num-processes", "2"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert "1 micro-batches of at most 3 in each of 2 processes on cpu" in done.stdout
    assert done.stdout.count("samples:") == 1 and not (folder / "two").exists()


def test_the_state_is_what_the_formats_say(folder: Path) -> None:
    """Weights and gradients of 2 bytes, moments of a byte each with their scales, the average in float32."""
    small = {"weights": "bfloat16", "moments": "8bit"}
    config = make_config(folder, "small", trainable="unet", optim={**COMMON["optim"], **small}, num_steps=3)
    plan = plan_of(config)
    cost, count = plan.state, plan.num_trained
    assert (cost.weights, cost.gradients, cost.averages) == (2 * count, 2 * count, 4 * count)
    unet = load_file(folder / "base/unet/diffusion_pytorch_model.safetensors").values()
    wanted = sum(
        4
        + (
            2 * each.numel() + 2 * 4 * -(-each.numel() // BLOCK)
            if each.numel() >= SMALLEST
            else 8 * each.numel()
        )
        for each in unet
    )
    assert cost.moments == wanted < 5 * count < plan_of(make_config(folder, "usual")).state.moments
    assert f"of gradients, {cost.moments / 1e3:.3g} kB of moments" in str(plan)
    assert denoiser.main([str(config)]) == 0
    files = {
        path.stem: load_file(path)
        for path in (folder / "small/checkpoints/step-000003").glob("*.safetensors")
    }
    written = {name: sum(tensor.nbytes for tensor in group.values()) for name, group in files.items()}
    assert written == {"weights": cost.weights, "average": cost.averages, "optimizer": cost.moments}
    result = load_file(folder / "small/pipeline/unet/diffusion_pytorch_model.safetensors")
    assert all(tensor.dtype == torch.float32 for tensor in result.values())
    assert all(
        torch.equal(result[name.removeprefix("denoiser.unet.")], each)
        for name, each in files["average"].items()
    )

"""The program `denoiser` with tiny parts: what it writes, exact resuming, signals, processes, wrong settings."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ldm.config import load_settings
from tests.support.tiny_runs import DENOISER, train_parts, write_config
from train import denoiser
from train.run.denoiser_model import make_loss

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data, trained parts and an uninterrupted denoiser run of six steps."""
    folder = tmp_path_factory.mktemp("runs")
    train_parts(folder)
    assert denoiser.main([str(make_config(folder, "whole"))]) == 0
    return folder


def make_config(folder: Path, name: str, **changes: Any) -> Path:
    parts = {"autoencoder": str(folder / "autoencoder"), "text_encoder": str(folder / "text_encoder")}
    if "base" not in changes:
        changes["parts"] = parts
    return write_config(folder / f"{name}.yaml", DENOISER, folder / "data", folder / name, **changes)


def checkpoint_tensors(run_dir: Path) -> dict[str, torch.Tensor]:
    """Every tensor of the newest checkpoint: weights, average and optimizer."""
    newest = sorted((run_dir / "checkpoints").iterdir())[-1]
    names = ("weights", "average", "optimizer")
    return {f"{n}/{k}": v for n in names for k, v in load_file(newest / f"{n}.safetensors").items()}


def losses(run_dir: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def weights_of(run_dir: Path) -> dict[str, torch.Tensor]:
    return load_file(sorted((run_dir / "checkpoints").iterdir())[-1] / "weights.safetensors")


def fresh_weights(config: Path) -> dict[str, torch.Tensor]:
    """The weights that a run starts from."""
    settings = load_settings(denoiser.DenoiserSettings, config)
    torch.manual_seed(settings.seed)
    module = make_loss(settings)
    return {name: p.detach() for name, p in module.named_parameters() if p.requires_grad}


def flat(weights: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([weights[name].flatten() for name in sorted(weights)])


def assert_same_run(first: Path, second: Path) -> None:
    assert losses(first) == losses(second)
    a, b = checkpoint_tensors(first), checkpoint_tensors(second)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_the_run_directory_holds_what_the_plan_says(folder: Path) -> None:
    run_dir = folder / "whole"
    assert (run_dir / "previews/step-000006.png").is_file()
    assert (run_dir / "config.yaml").is_file()
    state = json.loads((run_dir / "checkpoints/step-000006/state.json").read_text())
    assert state["step"] == 6
    assert len(losses(run_dir)) == 6


def test_the_pipeline_is_a_stock_one_with_the_averaged_weights(folder: Path) -> None:
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(folder / "whole/pipeline", safety_checker=None)
    average = load_file(folder / "whole/checkpoints/step-000006/average.safetensors")
    assert torch.equal(pipe.unet.conv_in.weight, average["denoiser.unet.conv_in.weight"])
    live = load_file(folder / "whole/checkpoints/step-000006/weights.safetensors")
    assert not torch.equal(pipe.unet.conv_in.weight, live["denoiser.unet.conv_in.weight"])


def test_the_text_encoder_was_trained_too(folder: Path) -> None:
    weights = load_file(folder / "whole/checkpoints/step-000006/weights.safetensors")
    before = load_file(folder / "text_encoder/text_encoder/model.safetensors")
    name = next(k for k in weights if k.endswith("token_embedding.weight"))
    old = next(v for k, v in before.items() if k.endswith("token_embedding.weight"))
    assert not torch.equal(weights[name], old)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_the_same_command_goes_on_to_the_last_bit(
    folder: Path, number: signal.Signals, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_config(folder, f"broken-{number.name}", preview_every=2)
    draw = denoiser.write_preview

    def draw_and_interrupt(*args: Any, **options: Any) -> None:
        draw(*args, **options)
        signal.raise_signal(number)

    with monkeypatch.context() as patch:
        patch.setattr(denoiser, "write_preview", draw_and_interrupt)
        assert denoiser.main([str(config)]) == 128 + number
    assert "run the same command to resume" in capsys.readouterr().err
    assert not (folder / f"broken-{number.name}" / "pipeline").exists()
    assert denoiser.main([str(config)]) == 0
    assert "resuming at step 2" in capsys.readouterr().err  # saved at once, not after another step
    assert_same_run(folder / "whole", folder / f"broken-{number.name}")


def test_a_finished_run_run_again_changes_nothing(folder: Path) -> None:
    before = losses(folder / "whole")
    assert denoiser.main([str(folder / "whole.yaml")]) == 0
    assert losses(folder / "whole") == before


def test_a_broken_checkpoint_is_named_and_the_one_before_it_taken(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = folder / "damaged"
    config = make_config(folder, "damaged", save_every=2, keep_checkpoints=3)
    assert denoiser.main([str(config)]) == 0
    weights = run_dir / "checkpoints/step-000006/weights.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    assert denoiser.main([str(config)]) == 0
    said = capsys.readouterr().err
    assert "step-000006/weights.safetensors has changed" in said
    assert "resuming at step 4" in said
    assert_same_run(folder / "whole", run_dir)


@pytest.mark.slow
def test_two_processes_train_as_one(folder: Path) -> None:
    config = make_config(folder, "two")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    run = subprocess.run(
        [*command, "-m", "train.denoiser", str(config)], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stderr
    assert losses(folder / "two") == pytest.approx(losses(folder / "whole"), rel=1e-5)
    start = flat(fresh_weights(folder / "whole.yaml"))
    one, two = (flat(weights_of(folder / name)) for name in ("whole", "two"))
    # under AdamW a weight with a zero gradient moves by rounding errors, so the whole vector is compared
    assert (one - two).norm() <= 1e-3 * (one - start).norm()


def test_micro_batches_change_nothing(folder: Path) -> None:
    config = make_config(folder, "micro", max_micro_batch=1)
    assert denoiser.main([str(config)]) == 0
    assert losses(folder / "micro") == pytest.approx(losses(folder / "whole"), rel=1e-5)


def test_a_finished_model_can_be_trained_on(folder: Path) -> None:
    config = make_config(folder, "further", base=str(folder / "whole/pipeline"), num_steps=3, model={})
    assert denoiser.main([str(config)]) == 0
    assert (folder / "further/pipeline/model_index.json").is_file()


def test_the_report_measures_captions_against_all_that_is_read_of_them(folder: Path) -> None:
    for num_chunks, num_tokens in ((1, 12), (2, 22)):  # a chunk has ten tokens besides its start and end
        name = f"chunks-{num_chunks}"
        config = make_config(folder, name, num_steps=3, prompt_chunks=num_chunks)
        assert denoiser.main([str(config)]) == 0
        report = json.loads((folder / name / "data_report.json").read_text())
        assert report["captions"]["context_length"] == num_tokens


def test_other_settings_do_not_resume(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert denoiser.main([str(folder / "whole.yaml"), "optim.learning_rate=0.1"]) == 2
    assert "optim.learning_rate was 0.003, now 0.1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("optim.learning_rat=1", "did you mean 'learning_rate'"),
        ("data.height=22", "choose a multiple of 4"),
        ("parts=null", "give either base"),
        ("schedule.rescale_betas_zero_snr=true", "use v_prediction or sample"),
        ("mixed_precision=bf16", "set mixed_precision=no"),
        ("nonsense", "write key=value"),
        ("data.path=/no/such/place", "no such folder"),
    ],
)
def test_wrong_settings_are_one_line_and_code_2(
    folder: Path, override: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_config(folder, "wrong")
    assert denoiser.main([str(config), override]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith("error: ") and said in lines[-1]
    assert not (folder / "wrong" / "pipeline").exists()


def test_a_share_that_holds_out_nothing_is_named_before_anything_is_cached(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_config(folder, "none")
    assert denoiser.main([str(config), "data.holdout_fraction=0.01", "validation.every=3"]) == 2
    assert "data.holdout_fraction = 0.01 holds out none of 7 images" in capsys.readouterr().err
    assert not (folder / "none").exists()


@pytest.mark.slow
def test_kill_9_at_any_moment_loses_nothing(folder: Path) -> None:
    config = make_config(folder, "killed", save_every=1)
    command = [sys.executable, "-m", "train.denoiser", str(config)]
    for seconds in (6.0, 7.0, 8.0):
        process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE)
        time.sleep(seconds)
        process.kill()
        process.communicate()
    assert subprocess.run(command, cwd=ROOT, capture_output=True).returncode == 0
    assert_same_run(folder / "whole", folder / "killed")

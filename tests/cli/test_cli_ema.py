"""`ldm ema`: averages of any width from a run's snapshots, for whole models, LoRAs and new tokens; refusals."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner, Result

from ldm.cli.app import app
from ldm.io.files import read_tensors
from ldm.io.json_files import read_json
from ldm.models.adapters.embedding import EmbeddingSettings, add_embedding, embedding_vectors
from ldm.models.adapters.folder import Adapter, find_base, read_adapter, save_adapter
from ldm.models.adapters.lora import LoraSettings, add_lora, lora_parameters, lora_weights
from ldm.models.adapters.lora_files import read_lora
from ldm.models.loading.model import ModelParts, load_parts, save_parts
from tests.support.tiny_averages import EVERY, NUM_STEPS, SETTINGS, task_of, walk
from tests.support.tiny_models import make_sd1
from train.loop.averages import WeightAverages, save_snapshot


def ldm_ema(*arguments: object) -> Result:
    result = CliRunner().invoke(app, ["ema", *map(str, arguments)])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Tensor]]:
    """A finished run that trained the last layers of the UNet, and its average of width 0.12."""
    folder = tmp_path_factory.mktemp("run")
    parts = make_sd1(folder)
    parts.denoiser.unet.conv_out.requires_grad_(True)
    parts.denoiser.unet.conv_norm_out.requires_grad_(True)
    expected = walk(parts, folder, 0.12)
    save_parts(parts, folder / "pipeline", provenance={"data": "squares"})
    return folder, expected


def test_the_average_of_a_new_width_is_written_as_a_model(run: tuple[Path, dict[str, Tensor]]) -> None:
    folder, expected = run
    done = ldm_ema(folder, "--width", 0.12)
    assert done.exit_code == 0 and "width 0.12 at step 60" in done.stdout and "residual" in done.stdout
    output = folder / "pipeline-width-0.12"
    made, before = (dict(task_of(load_parts(p)).named_parameters()) for p in (output, folder / "pipeline"))
    for name, tensor in made.items():
        if name not in expected:
            assert torch.equal(tensor, before[name])
            continue
        movement = (before[name] - expected[name]).abs().mean()
        assert (tensor - expected[name]).abs().mean() < 0.05 * movement
    provenance = read_json(output / "ldm.json")["provenance"]
    assert provenance == {"data": "squares", "average_width": 0.12, "average_step": 60}


def test_a_stored_width_is_reproduced_exactly(run: tuple[Path, dict[str, Tensor]], tmp_path: Path) -> None:
    folder, expected = run
    done = ldm_ema(folder, "--width", 0.1, "--output", tmp_path / "model", "--json")
    assert done.exit_code == 0
    facts = json.loads(done.stdout)
    assert abs(facts.pop("residual")) < 1e-6
    num_averages = len(SETTINGS.widths) * NUM_STEPS // EVERY
    assert facts == {
        "output": str(tmp_path / "model"), "width": 0.1, "step": NUM_STEPS, "num_averages": num_averages
    }  # fmt: skip
    made = dict(task_of(load_parts(tmp_path / "model")).named_parameters())
    stored = read_tensors(folder / "averages" / "step-000060" / "averages.safetensors")
    for name in expected:
        torch.testing.assert_close(made[name].detach(), stored[f"width-0.1/{name}"], rtol=1e-5, atol=1e-6)


def adapter_run(
    folder: Path, prepare: Callable[[ModelParts], object], save: Callable[[ModelParts, Path], None]
) -> dict[str, Tensor]:
    """A finished run of an adapter with its base beside it; returns its average of width 0.07."""
    parts = make_sd1(folder)
    save_parts(parts, folder / "base")
    prepare(parts)
    expected = walk(parts, folder / "run", 0.07)
    save(parts, folder / "run" / "pipeline")
    return expected


def describe(folder: Path, kind: str, parts: ModelParts, settings: dict[str, object]) -> Adapter:
    base = find_base(folder / "base")
    return Adapter(kind, base.given, base.weights_hash, parts.scheduler_config, settings)


@pytest.mark.parametrize("kind", [{"use_dora": True}, {"kind": "lokr", "factor": 4}], ids=["dora", "lokr"])
def test_a_lora_is_averaged_as_a_lora(kind: dict[str, Any], tmp_path: Path) -> None:
    settings = LoraSettings(rank=2, alpha=3.0, text_encoder=True, **kind)

    def networks(parts: ModelParts) -> dict[str, nn.Module]:
        return {"unet": parts.denoiser.unet, "text_encoder": parts.text_encoder.model}

    def prepare(parts: ModelParts) -> None:
        add_lora(networks(parts), settings, seed=0)
        for network in networks(parts).values():
            for parameter in lora_parameters(network):
                parameter.requires_grad_(True)

    def save(parts: ModelParts, pipeline: Path) -> None:
        adapter = describe(tmp_path, "lora", parts, settings.model_dump(mode="json"))
        save_adapter(pipeline, adapter, lora_weights(networks(parts)), parts.defaults)

    expected = adapter_run(tmp_path, prepare, save)
    done = ldm_ema(tmp_path / "run", "--width", 0.07, "--output", tmp_path / "averaged")
    assert done.exit_code == 0, done.stderr
    made, last = (
        read_lora(p / "pytorch_lora_weights.safetensors")
        for p in (tmp_path / "averaged", tmp_path / "run" / "pipeline")
    )
    assert made.configs == last.configs and made.tensors.keys() == last.tensors.keys()
    assert len(made.tensors) == len(expected)
    for name, tensor in expected.items():
        stored = name.replace("denoiser.unet.", "unet.").replace("text_encoder.model.", "text_encoder.")
        stored = stored.replace("vector.default.weight", "vector").replace(".default.", ".")
        stored = stored.removesuffix(".default")
        assert (made.tensors[stored] - tensor).abs().mean() < 0.1 * (
            last.tensors[stored] - tensor
        ).abs().mean()
    load_parts(tmp_path / "averaged")


def test_a_new_token_is_averaged_as_a_new_token(tmp_path: Path) -> None:
    settings = EmbeddingSettings(token="<cat>", initial_word="apple", num_vectors=2)

    def prepare(parts: ModelParts) -> None:
        add_embedding(parts.text_encoder, settings)

    def save(parts: ModelParts, pipeline: Path) -> None:
        adapter = describe(tmp_path, "embedding", parts, settings.model_dump(mode="json"))
        vectors = embedding_vectors(parts.text_encoder)[0].detach()
        save_adapter(pipeline, adapter, {settings.token: vectors}, parts.defaults)

    (expected,) = adapter_run(tmp_path, prepare, save).values()
    assert ldm_ema(tmp_path / "run", "--width", 0.07, "--output", tmp_path / "averaged").exit_code == 0
    (made,) = read_tensors(tmp_path / "averaged" / "learned_embeds.safetensors").values()
    (last,) = read_tensors(tmp_path / "run" / "pipeline" / "learned_embeds.safetensors").values()
    assert (made - expected).abs().mean() < 0.1 * (last - expected).abs().mean()
    assert read_adapter(tmp_path / "averaged").kind == "embedding"


def copy_of(folder: Path, dest: Path) -> Path:
    """The run's snapshots and model under another name, as symbolic links."""
    for path in folder.rglob("*"):
        if path.is_file() and {"averages", "pipeline"} & set(path.parts):
            target = dest / path.relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(path)
    return dest


def test_a_damaged_snapshot_is_named_and_skipped(run: tuple[Path, dict[str, Tensor]], tmp_path: Path) -> None:
    folder = copy_of(run[0], tmp_path / "run")
    damaged = folder / "averages" / "step-000060" / "averages.safetensors"
    content = damaged.read_bytes()
    damaged.unlink()
    damaged.write_bytes(content[:-1])
    done = ldm_ema(folder, "--width", 0.08, "--output", tmp_path / "model")
    assert done.exit_code == 0 and "at step 55" in done.stdout
    assert "step-000060" in done.stderr and "skipped" in done.stderr


@pytest.mark.parametrize("width", ["0", "-0.1", "0.5", "nan"])
def test_a_width_out_of_range_is_refused(run: tuple[Path, dict[str, Tensor]], width: str) -> None:
    done = ldm_ema(run[0], "--width", width)
    assert done.exit_code == 2 and done.stderr.count("\n") == 1
    assert "above 0 and at most 0.28" in done.stderr


def test_what_cannot_be_rebuilt_is_refused_in_one_line(
    run: tuple[Path, dict[str, Tensor]], tmp_path: Path
) -> None:
    unfinished = tmp_path / "unfinished"
    (unfinished / "averages").mkdir(parents=True)
    (unfinished / "averages" / "step-000060").symlink_to(run[0] / "averages" / "step-000060")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/mine.txt").touch()
    for arguments, message in (
        ((tmp_path / "none",), "has no snapshots"),
        ((unfinished,), "finish the run first"),
        ((run[0], "--output", tmp_path / "taken"), "exists already"),
    ):
        done = ldm_ema(*arguments, "--width", 0.1)
        assert done.exit_code == 2 and done.stderr.count("\n") == 1 and message in done.stderr


def test_snapshots_of_another_model_are_refused(run: tuple[Path, dict[str, Tensor]], tmp_path: Path) -> None:
    other = WeightAverages(nn.ModuleDict({"denoiser": nn.Linear(2, 2, bias=False)}), 0.0, SETTINGS)
    folder = copy_of(run[0], tmp_path / "run")
    save_snapshot(other, 70, folder / "averages")
    assert "contains other weights" in ldm_ema(folder, "--width", 0.1).stderr
    shutil.rmtree(folder / "averages")
    save_snapshot(other, 70, folder / "averages")
    done = ldm_ema(folder, "--width", 0.1)
    assert done.exit_code == 2 and "denoiser.weight of shape [2, 2]" in done.stderr
    assert not (folder / "pipeline-width-0.1").exists()

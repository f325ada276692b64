"""`ldm verify`: models of any origin, read by us and by other libraries. Also: a checkpoint instead of a model."""

import shutil
from pathlib import Path

import pytest
import torch
from click.testing import Result
from typer.testing import CliRunner

import ldm.export.verify.compare
from ldm.cli.app import app
from ldm.cli.checkpoint import find_checkpoint
from ldm.errors import UserError
from ldm.export.artefact import export
from ldm.export.export_options import ExportOptions
from ldm.export.export_source import load_source
from ldm.export.verify import readers
from ldm.export.verify.check import check
from ldm.io.files import write_json
from ldm.io.json_files import read_json
from ldm.models.adapters.folder import Adapter, find_base, save_adapter
from ldm.models.adapters.lora import LoraSettings
from ldm.models.loading.model import load_parts, save_parts
from tests.support.tiny_loras import FORMATS, trained
from tests.support.tiny_models import make_sd1, make_sd2


@pytest.fixture(autouse=True)
def read_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reader runs in this process, which has diffusers loaded already."""
    monkeypatch.setattr(ldm.export.verify.compare, "_run", lambda task, _: readers.main([str(task)]))


@pytest.fixture
def base(tmp_path: Path) -> Path:
    save_parts(make_sd2(tmp_path / "tokenizer"), tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def adapter(base: Path, tmp_path: Path) -> Path:
    """A LoRA as a run leaves it."""
    parts, plain = load_parts(base), load_parts(base)
    known = Adapter("lora", str(base), find_base(base).weights_hash, plain.scheduler_config, {})
    save_adapter(tmp_path / "film", known, trained(parts, LoraSettings(rank=2, alpha=5)), plain.defaults)
    return tmp_path / "film"


def ldm_verify(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["verify", *map(str, arguments)])


def test_a_model_of_any_origin_is_read_by_both(base: Path) -> None:
    (base / "ldm.json").unlink()
    done = ldm_verify(base)
    assert done.exit_code == 0, done.output
    assert "read by diffusers" in done.stdout and "prediction type v_prediction" in done.stdout


@pytest.mark.parametrize("format", ["lora-diffusers", "lora-peft", "lora-kohya"])
def test_an_exported_lora_is_read_on_its_base(adapter: Path, base: Path, tmp_path: Path, format: str) -> None:
    dest = tmp_path / "out"
    (verdict,) = export(load_source(adapter), dest, ExportOptions(format=format, num_samples=0)).verdicts
    again = check(dest, str(base))
    assert again.reader == verdict.reader and again.passed
    assert again.lora_effect == pytest.approx(verdict.lora_effect) and again.lora_effect > 1
    with pytest.raises(UserError, match="is a LoRA: name the model that it was trained on with --base"):
        check(dest)
    save_parts(make_sd2(tmp_path / "tokenizer"), tmp_path / "other", dtype=torch.float16)
    with pytest.raises(UserError, match="does not have the weights of"):
        check(dest, str(tmp_path / "other"))


@pytest.mark.parametrize("format", FORMATS)
def test_a_lora_of_any_origin_is_read(base: Path, tmp_path: Path, format: str) -> None:
    weights = trained(load_parts(base), LoraSettings(rank=2, alpha=5))
    verdict = check(FORMATS[format](weights, tmp_path / "lora"), str(base))
    assert verdict.passed and verdict.lora_effect is not None and verdict.lora_effect > 1


def test_a_reader_that_ignores_a_lora_is_noticed(
    adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(readers.READERS, "lora", ("diffusers", readers.read_folder))
    with pytest.raises(UserError, match=r"largest difference .* the LoRA changes it by"):
        export(load_source(adapter), tmp_path / "out", ExportOptions(format="lora-kohya", num_samples=0))


def test_a_lora_kept_apart_is_read_with_its_base(adapter: Path, tmp_path: Path) -> None:
    export(load_source(adapter), tmp_path / "out", ExportOptions(fuse=False, num_samples=0))
    verdict = check(tmp_path / "out")
    assert verdict.passed and verdict.lora_effect is not None and verdict.lora_effect > 1


def test_an_adapter_of_ours_names_its_base(adapter: Path) -> None:
    assert check(adapter).passed


def test_faults_are_reported_and_nothing_is_drawn(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ldm.export.verify.compare, "_run", lambda *_: pytest.fail("it was read"))
    (base / "vae/diffusion_pytorch_model.safetensors").unlink()
    (base / "unet/diffusion_pytorch_model.safetensors").write_bytes(b"x" * 100)
    done = ldm_verify(base)
    assert done.exit_code == 2
    assert "error: unet" in done.stdout and "faults: do not use it until they are fixed" in done.stderr


def test_a_file_changed_since_the_export_is_a_fault(base: Path, tmp_path: Path) -> None:
    export(load_source(base), tmp_path / "out", ExportOptions(num_samples=0))
    assert ldm_verify(tmp_path / "out", "--no-draw").exit_code == 0
    config = tmp_path / "out/scheduler/scheduler_config.json"
    write_json(config, {**read_json(config), "prediction_type": "epsilon"})
    done = ldm_verify(tmp_path / "out")
    assert done.exit_code == 2
    assert "scheduler/scheduler_config.json: it has changed since the export" in done.stdout


def test_a_model_that_diffusers_reads_differently_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_parts(make_sd1(tmp_path / "tokenizer"), tmp_path / "model")
    own, theirs = load_parts(tmp_path / "model"), tmp_path / "theirs"
    shutil.copytree(tmp_path / "model", theirs)
    write_json(theirs / "scheduler/scheduler_config.json", {**own.scheduler_config, "beta_end": 0.02})
    monkeypatch.setattr(
        readers,
        "READERS",
        {"diffusers": ("diffusers", lambda o: readers.read_folder({**o, "folder": str(theirs)}))},
    )
    done = ldm_verify(tmp_path / "model")
    assert done.exit_code == 2 and "gets another image from" in done.stderr


def test_a_path_without_a_model_is_refused(tmp_path: Path) -> None:
    assert "does not exist" in ldm_verify(tmp_path / "nowhere").stderr
    (tmp_path / "empty").mkdir()
    assert ldm_verify(tmp_path / "empty").exit_code == 2


def test_checkpoints_are_found(tmp_path: Path) -> None:
    for step in (90, 1000, 200):
        folder = tmp_path / f"run/checkpoints/step-{step:06d}"
        folder.mkdir(parents=True)
        (folder / "state.json").write_text("{}")
    newest = tmp_path / "run/checkpoints/step-001000"
    assert find_checkpoint(tmp_path / "run", always=False) == newest
    assert find_checkpoint(newest.with_name("step-000090"), always=False) == newest.with_name("step-000090")
    (tmp_path / "run/pipeline").mkdir()
    assert find_checkpoint(tmp_path / "run", always=False) is None
    assert find_checkpoint(tmp_path / "run", always=True) == newest
    assert find_checkpoint(tmp_path, always=True) is None

"""The metadata in a LoRA file's header."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from ldm.export.export_source import ExportSource
from ldm.export.formats.lora_metadata import lora_metadata
from ldm.io.safetensors_header import read_header
from ldm.models.adapters.folder import Adapter
from ldm.models.adapters.lora import LoraSettings
from ldm.models.adapters.lora_files import write_lora_kohya
from ldm.models.parts import ModelParts
from tests.support.tiny_loras import trained, uneven
from tests.support.tiny_models import make_sd1
from tests.support.tiny_single_file import make_narrow_sd1, make_narrow_sd2

SECRET = "/home/someone/secret"


def source(folder: Path, make: Any, settings: LoraSettings, run: Path | None = None) -> ExportSource:
    weights, parts = trained(make(folder), settings), make(folder)
    adapter = Adapter("lora", f"{SECRET}/base/pipeline", "0" * 64, parts.scheduler_config, {"start": SECRET})
    return ExportSource("film", folder, parts, "1" * 64, run=run, adapter=adapter, lora=weights)


def narrow_sd1(_: Path) -> ModelParts:
    return make_narrow_sd1()


def narrow_sd2(_: Path) -> ModelParts:
    return make_narrow_sd2()


def test_the_metadata_names_title_size_and_kind(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(
        f"run_dir: {SECRET}\nseed: 7\nnum_steps: 500\nglobal_batch_size: 4\noptim: {{learning_rate: 0.0001}}\n"
    )
    given = source(tmp_path, narrow_sd1, LoraSettings(rank=3, alpha=7, target_modules="all"), run=tmp_path)
    assert given.lora is not None
    header = lora_metadata(given, title="Film", licence="mit")
    write_lora_kohya(given.lora, tmp_path / "x.safetensors", header)
    found = dict(read_header(tmp_path / "x.safetensors").metadata)
    assert found.pop("modelspec.hash_sha256") == f"0x{found.pop('sshs_model_hash')}"
    assert json.loads(found.pop("ss_network_args")) == {"conv_dim": "3", "conv_alpha": "7.0"}
    assert found == {
        "format": "pt",
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": "stable-diffusion-v1/lora",
        "modelspec.implementation": "diffusers",
        "modelspec.title": "Film",
        "modelspec.resolution": "64x64",
        "modelspec.prediction_type": "epsilon",
        "modelspec.license": "mit",
        "ss_base_model_version": "sd_v1",
        "ss_v2": "False",
        "ss_zero_terminal_snr": "False",
        "ss_resolution": "(64, 64)",
        "ss_output_name": "Film",
        "ss_sd_model_name": "base",
        "ss_network_module": "networks.lora",
        "ss_network_dim": "3",
        "ss_network_alpha": "7.0",
        "ss_seed": "7",
        "ss_learning_rate": "0.0001",
        "ss_max_train_steps": "500",
        "ss_total_batch_size": "4",
    }
    assert "someone" not in str(found)


@pytest.mark.parametrize("use_dora", [False, True])
def test_the_metadata_of_a_lora_for_stable_diffusion_2(use_dora: bool, tmp_path: Path) -> None:
    settings = LoraSettings(rank=3, alpha=7, use_dora=use_dora)
    found = lora_metadata(source(tmp_path, narrow_sd2, settings), title="Film")
    assert found["modelspec.architecture"] == "stable-diffusion-v2-768-v/lora"
    assert (found["ss_base_model_version"], found["modelspec.prediction_type"]) == ("sd_v2", "v")
    assert found["ss_network_module"] == ("lycoris.kohya" if use_dora else "networks.lora")
    assert json.loads(found.get("ss_network_args", "{}")) == (
        {"algo": "lora", "dora_wd": "True"} if use_dora else {}
    )


def test_the_metadata_of_a_lora_for_an_unknown_model(tmp_path: Path) -> None:
    given = source(tmp_path, make_sd1, LoraSettings(rank=3, alpha=7))
    found = lora_metadata(given, title="Film")
    assert found["modelspec.architecture"] == "latent-diffusion/lora"
    assert not {"ss_base_model_version", "ss_v2"} & set(found)


def test_rank_and_alpha_are_those_of_most_layers(tmp_path: Path) -> None:
    given = source(tmp_path, make_sd1, LoraSettings(rank=3, alpha=7))
    assert given.lora is not None
    mixed = dataclasses.replace(given, lora=uneven(given.lora, given.parts))
    found = lora_metadata(mixed, title="Film")
    assert (found["ss_network_dim"], found["ss_network_alpha"]) == ("3", "7.0")

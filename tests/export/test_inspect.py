"""Inspecting a model of any origin: every fault is found, at its place, without loading the model."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ldm.errors import UserError
from ldm.export.artefact import files_with_hashes
from ldm.export.verify import inspect_tensors
from ldm.export.verify.finding import Finding
from ldm.export.verify.inspect import inspect_folder
from ldm.export.verify.inspect_tensors import not_finite
from ldm.models.loading.model import save_parts
from tests.support.hostile_files import LIES, code_that_makes, edit_json, pickle_that_makes, write_safetensors
from tests.support.tiny_models import make_sd2

UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    save_parts(make_sd2(tmp_path_factory.mktemp("tokenizer")), folder)
    (folder / "export.json").write_text(json.dumps({"files": files_with_hashes(folder)}))
    return folder


@pytest.fixture
def model(saved: Path, tmp_path: Path) -> Path:
    """A copy to damage, without a record of its files."""
    copy = Path(shutil.copytree(saved, tmp_path / "model"))
    (copy / "export.json").unlink()
    return copy


def lines(found: list[Finding], *severities: str) -> list[str]:
    return [str(finding) for finding in found if finding.severity in severities]


def faults(path: Path) -> list[str]:
    return lines(inspect_folder(path), "error", "warning")


def change(path: Path, edit: Callable[[dict[str, Tensor]], Any]) -> None:
    """Rewrite a safetensors file with other tensors."""
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path)


def test_a_good_model_has_only_notes(saved: Path) -> None:
    found = inspect_folder(saved)
    assert {finding.severity for finding in found} == {"note"}
    assert "note: .: StableDiffusionPipeline in the diffusers layout, prediction type v_prediction" in lines(
        found, "note"
    )
    recorded = json.loads((saved / "export.json").read_text())["files"]
    (said,) = [finding.what for finding in found if finding.path == UNET]
    assert recorded[UNET]["sha256"] in said and "of F32" in said
    assert str(saved) not in "".join(map(str, found))


def test_non_finite_values_are_named(model: Path) -> None:
    def spoil(tensors: dict[str, Tensor]) -> None:
        tensors["conv_in.bias"][3] = torch.nan
        tensors["conv_out.weight"] = tensors["conv_out.weight"].half()
        tensors["conv_out.weight"][0, 0, 0, 0] = -torch.inf

    change(model / UNET, spoil)
    assert not_finite(model / UNET) == ["conv_in.bias", "conv_out.weight"]
    assert faults(model) == [f"error: {UNET}: 'conv_in.bias', 'conv_out.weight': non-finite values"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float8_e4m3fn, torch.complex64])
def test_values_in_any_number_format_are_checked(
    tmp_path: Path, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inspect_tensors, "CHUNK", 100)
    good = torch.ones(205).to(dtype)
    bad = torch.tensor([1.0] * 200 + [torch.nan] * 5).to(dtype)
    save_file({"good": good, "bad": bad, "count": torch.arange(3), "none": good[:0]}, tmp_path / "a")
    assert not_finite(tmp_path / "a") == ["bad"]


def test_unusual_numbers_are_a_warning(model: Path) -> None:
    change(model / UNET, lambda tensors: tensors.update(a=torch.ones(2).double(), b=torch.tensor(1)))
    found = lines(inspect_folder(model), "warning")
    assert found == [f"warning: {UNET}: 'a': unusual number format F64"]


def test_weights_are_accounted_for(model: Path) -> None:
    def spoil(tensors: dict[str, Tensor]) -> None:
        tensors["extra.weight"] = tensors.pop("conv_in.bias")
        tensors["conv_out.bias"] = torch.zeros(7)

    change(model / UNET, spoil)
    assert faults(model) == [
        "error: unet: the weight 'conv_in.bias' is missing",
        "error: unet: the weight 'conv_out.bias' is [7], and config.json says [4]",
        "error: unet: the weight 'extra.weight' is left over",
    ]


def test_parts_must_fit_each_other(model: Path) -> None:
    edit_json(model / "vae" / "config.json", latent_channels=8)
    assert "error: .: the unet has latent channels 4, but the vae has 8" in faults(model)


def test_everything_suspicious_is_found_and_nothing_is_run(model: Path, tmp_path: Path) -> None:
    marker = tmp_path / "it-ran"
    (model / "unet" / "diffusion_pytorch_model.bin").write_bytes(pickle_that_makes(marker))
    (model / "notes.dat").write_bytes(pickle_that_makes(marker))
    (model / "evil.py").write_text(code_that_makes(marker))
    (model / "samples").mkdir()
    (model / "samples" / "0.png").write_bytes(b"")
    (model / "link.png").symlink_to("/etc/hostname")
    (model / "elsewhere").symlink_to("/etc")
    (model / "inside.md").symlink_to("ldm.json")
    os.mkfifo(model / "pipe")
    (model / "ldm.json").write_text("{" * 10)
    edit_json(model / "unet" / "config.json", auto_map={"a": "b"})
    found = inspect_folder(model)
    assert lines(found, "error", "warning") == [
        "warning: elsewhere: a link to a place outside this folder",
        "warning: elsewhere: a linked folder, not checked",
        "warning: evil.py: code. We do not run it",
        *[line for line in lines(found, "error") if line.startswith("error: ldm.json: is not valid JSON")],
        "warning: link.png: a link to a place outside this folder",
        "warning: notes.dat: a pickle: loading it can run code. We never read it",
        "error: pipe: not a regular file",
        "error: unet/config.json: has the key 'auto_map': models that bring code are refused",
        "warning: unet/diffusion_pytorch_model.bin: a pickle: loading it can run code. We never read it",
    ]
    assert "note: evil.py: not part of a model; we do not read it" in lines(found, "note")
    assert not any("samples" in line for line in map(str, found))
    assert not marker.exists()


def test_all_faults_are_found_not_only_the_first(model: Path) -> None:
    write_safetensors(model / "vae" / "diffusion_pytorch_model.safetensors", LIES["gap"][0])
    edit_json(
        model / "model_index.json", text_encoder=["evil", "CLIPTextModel"], scheduler=["diffusers", "X"]
    )
    (model / UNET).rename(model / "unet" / "diffusion_pytorch_model.bin")
    found = "\n".join(faults(model))
    for said in (
        "vae/diffusion_pytorch_model.safetensors: is not a valid safetensors file (the tensor 'a' comes after",
        "comes from 'evil'",
        "is a X",
        "unet/diffusion_pytorch_model.bin: is a pickle",
    ):
        assert said in found


def test_changed_and_missing_files_are_found(saved: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(saved, tmp_path / "model"))
    change(model / UNET, lambda tensors: tensors["conv_in.bias"].add_(1))
    (model / "ldm.json").unlink()
    (model / "README.md").write_text("edited")  # which is allowed for a card
    save_file({"a": torch.ones(2, 2)}, model / "extra.safetensors")
    record = json.loads((model / "export.json").read_text())
    record["files"] |= {"../../secret": {"sha256": "0"}, "/etc/hostname": {"sha256": "0"}}
    (model / "export.json").write_text(json.dumps(record))
    found = inspect_folder(model)
    assert lines(found, "error", "warning") == [
        "error: ../../secret: it is outside the folder, according to export.json",
        "error: /etc/hostname: it is outside the folder, according to export.json",
        "warning: extra.safetensors: it is not recorded in export.json",
        "error: ldm.json: it is missing, according to export.json",
        f"error: {UNET}: it has changed since the export, according to export.json",
    ]
    files = len(record["files"])
    assert f"note: export.json: {files - 4} of {files} files are as recorded" in lines(found, "note")


def lora(**changes: Tensor | None) -> dict[str, Tensor]:
    layer = "lora_unet_mid_block_attentions_0_proj_in"
    tensors = {"down": torch.ones(4, 8), "up": torch.ones(8, 4)} | changes
    named = {f"{layer}.lora_{kind}.weight": tensor for kind, tensor in tensors.items() if tensor is not None}
    return named | {f"{layer}.alpha": torch.tensor(2.0)}


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        (lora(), []),
        (lora(up=None), ["the layer 'lora_unet_mid_block_attentions_0_proj_in' has no up"]),
        (lora(up=torch.ones(8, 3)), ["proj_in' has two ranks: (4,) and (3,)"]),
        (lora() | {"other": torch.ones(2)}, ["the weight 'other' is unexpected"]),
        (lora(down=torch.full((4, 8), torch.inf)), ["lora_down.weight': non-finite values"]),
        ({"a.hada_w1_a": torch.ones(2)}, ["the layer 'a' has no down and no up"]),
        ({"conv.weight": torch.ones(2)}, ["not a known kind of model"]),
        ({"<sks>": torch.ones(1, 48)}, []),
    ],
)
def test_a_file_by_itself(tmp_path: Path, tensors: dict[str, Tensor], said: list[str]) -> None:
    save_file(tensors, tmp_path / "a.safetensors")
    found = faults(tmp_path / "a.safetensors")
    assert len(found) == len(said)
    assert all(part in line for part, line in zip(said, found, strict=True))
    assert [line.replace("b/", "") for line in faults(tmp_path)] == found


def test_a_pickle_is_not_a_model(tmp_path: Path) -> None:
    marker = tmp_path / "it-ran"
    path = tmp_path / "model.ckpt"
    path.write_bytes(pickle_that_makes(marker))
    assert "error: model.ckpt: not a model: a single file must be safetensors" in faults(path)
    assert "error: .: not a model: it has no model_index.json and no safetensors" in faults(tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        inspect_folder(tmp_path / "gone")
    assert not marker.exists()


@pytest.mark.parametrize(
    ("config", "weights", "said"),
    [
        ({"peft_type": "LORA"}, "adapter_model.safetensors", []),
        ({"auto_mapping": {"parent_library": "diffusers.models"}}, "adapter_model.safetensors", []),
        ({"auto_mapping": {"parent_library": "evil"}}, "adapter_model.safetensors", ["imported from 'evil'"]),
        ({"auto_map": "x"}, "adapter_model.safetensors", ["has the key 'auto_map'"]),
        ({"peft_type": "LORA"}, "adapter_model.bin", ["adapter_model.safetensors is missing", "a pickle"]),
    ],
)
def test_a_folder_of_peft(tmp_path: Path, config: dict[str, Any], weights: str, said: list[str]) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    save_file({k.replace("_unet", ""): v for k, v in lora().items()}, tmp_path / weights)
    found = faults(tmp_path)
    assert len(found) == len(said)
    assert all(part in line for part, line in zip(said, found, strict=True))

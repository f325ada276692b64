"""Inspecting a model in one file: every weight is checked, from shapes alone."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ldm.export.formats.single_file import write_single_file
from ldm.export.verify.inspect import inspect_folder
from tests.support.tiny_single_file import make_narrow_sd1, make_narrow_sd2

UNET = "model.diffusion_model."


@pytest.fixture(scope="module")
def tensors(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    path = tmp_path_factory.mktemp("single") / "a.safetensors"
    write_single_file(make_narrow_sd1(), path, dtype=torch.float16, metadata={})
    return load_file(path)


def faults(tensors: dict[str, Tensor], path: Path) -> list[str]:
    save_file(tensors, path)
    return [finding.what for finding in inspect_folder(path) if finding.severity != "note"]


@pytest.mark.parametrize("make", [make_narrow_sd1, pytest.param(make_narrow_sd2, marks=pytest.mark.slow)])
def test_a_good_file_has_no_fault(tmp_path: Path, make: type) -> None:
    write_single_file(make(), tmp_path / "a.safetensors", dtype=torch.float16, metadata={})
    found = inspect_folder(tmp_path / "a.safetensors")
    assert [finding.severity for finding in found] == ["note", "note"]
    assert "original layout" in found[1].what


def test_every_weight_is_accounted_for(tensors: dict[str, Tensor], tmp_path: Path) -> None:
    """The first fault of each network, and weights that belong to none."""
    changed = {name: tensor for name, tensor in tensors.items() if name != f"{UNET}time_embed.0.bias"}
    changed["first_stage_model.decoder.conv_out.bias"] = torch.zeros(5)
    changed["other.weight"] = torch.zeros(2)
    changed["model_ema.decay"] = torch.tensor(0.5)  # averages are ignored
    found = faults(changed, tmp_path / "a.safetensors")
    assert found[0] == "the weight 'other.weight' belongs to no part of the model"
    assert "the unet's weight time_embedding.linear_1.bias is missing" in found[1]
    assert "the vae's weight decoder.conv_out.bias has shape [5], here it must be [3]" in found[2]
    assert len(found) == 3


def test_another_structure_and_a_missing_network_are_named(
    tensors: dict[str, Tensor], tmp_path: Path
) -> None:
    strange = tensors | {f"{UNET}input_blocks.99.0.weight": torch.zeros(2)}
    (found,) = faults(strange, tmp_path / "a.safetensors")
    assert "input_blocks.99.0.weight' is not part of a known structure" in found
    bare = {name: tensor for name, tensor in tensors.items() if not name.startswith("first_stage_model.")}
    (found,) = faults(bare, tmp_path / "a.safetensors")
    assert found.startswith("the vae is incomplete, or has another structure")

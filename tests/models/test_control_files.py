"""A ControlNet in a single file: both namings give the network of the folder, and what does not fit is refused."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ldm.errors import UserError
from ldm.io.files import write_tensors
from ldm.models.control.load_networks import load_controls
from ldm.models.families.stable_diffusion import SD1
from ldm.models.parts import ModelParts
from tests.support.tiny_controls import make_controlnet, save_controlnet
from tests.support.tiny_models import make_sd1
from tests.support.tiny_single_file import make_narrow_sd1, make_narrow_sd2


@pytest.fixture(scope="module", params=[make_narrow_sd1, make_narrow_sd2])
def parts(request: pytest.FixtureRequest) -> ModelParts:
    made: ModelParts = request.param()
    return made


def original_names(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """By our own mapping of the encoder's names, and the ControlNet's further ones (Zhang et al.'s `cldm.py`)."""
    assert SD1.single_file is not None
    unet = SD1.single_file.networks["unet"]
    found = {}
    for name, tensor in weights.items():
        number = re.search(r"\.(\d+)\.", name)
        end = name.rpartition(".")[2]
        if name.startswith("controlnet_down_blocks"):
            found[f"zero_convs.{number and number[1]}.0.{end}"] = tensor
        elif name.startswith("controlnet_mid_block"):
            found[f"middle_block_out.0.{end}"] = tensor
        elif name.startswith("controlnet_cond_embedding"):
            place = {"conv_in": 0, "conv_out": 14}.get(
                name.split(".")[1], 2 + 2 * int(number[1] if number else 0)
            )
            found[f"input_hint_block.{place}.{end}"] = tensor
        else:
            found |= unet.to_original({name: tensor})
    return {f"control_model.{name}": tensor for name, tensor in found.items()}


def as_file(path: Path, weights: dict[str, Tensor]) -> Path:
    write_tensors(path, weights, {"format": "pt"})
    return path


def test_each_layout_is_the_network_of_the_folder(parts: ModelParts, tmp_path: Path) -> None:
    net = make_controlnet(parts)
    weights = dict(net.state_dict())
    original = original_names(weights)
    assert "control_model.input_hint_block.14.weight" in original and len(original) == len(weights)
    bare = {name.removeprefix("control_model."): each for name, each in original.items()}
    whole = original | {"model.diffusion_model.out.0.weight": torch.zeros(3)}  # a file of base and ControlNet
    places: dict[str, Any] = {
        "canny": as_file(tmp_path / "control_v11p_sd15_canny.safetensors", original),
        "depth": as_file(tmp_path / "bare.safetensors", bare),
        "pose": as_file(tmp_path / "diffusers.safetensors", weights),
        "scribble": as_file(tmp_path / "whole.safetensors", whole),
        "lineart": save_controlnet(net, tmp_path / "folder"),
    }
    found = load_controls(places, parts)
    for control in found.values():
        state = control.network.state_dict()
        assert state.keys() == weights.keys()
        assert all(torch.equal(state[name], tensor) for name, tensor in weights.items())
    assert found["canny"].name == "control_v11p_sd15_canny.safetensors"


def test_what_is_no_controlnet_for_the_model_is_refused_in_one_line(tmp_path: Path) -> None:
    parts = make_narrow_sd1()
    original = original_names(dict(make_controlnet(parts).state_dict()))
    some = next(name for name in original if "zero_convs.3" in name)
    few = {name: tensor for name, tensor in original.items() if name != some}
    other = original_names(dict(make_controlnet(make_narrow_sd2()).state_dict()))
    cases = {
        "holds no ControlNet": {"model.diffusion_model.out.0.weight": torch.zeros(3)},
        "controlnet_down_blocks.3.*is missing": few,
        "strange is left over": original | {"control_model.strange": torch.zeros(3)},
        "has shape": other,
    }
    for number, (fault, weights) in enumerate(cases.items()):
        path = as_file(tmp_path / f"{number}.safetensors", weights)
        with pytest.raises(UserError, match=fault) as refused:
            load_controls({"canny": path}, parts)
        assert "\n" not in str(refused.value) and path.name in str(refused.value)
    (tmp_path / "net.pth").write_bytes(b"x")
    with pytest.raises(UserError, match="is a pickle"):
        load_controls({"canny": tmp_path / "net.pth"}, parts)
    with pytest.raises(UserError, match="Hub id"):
        load_controls({"canny": str(tmp_path / "nowhere")}, parts)
    small = make_sd1(tmp_path / "tokenizer")  # two levels: diffusers' names, of another number of levels
    with pytest.raises(UserError, match="does not fit this model"):
        load_controls({"canny": as_file(tmp_path / "o.safetensors", original)}, small)

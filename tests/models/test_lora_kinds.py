"""LoRA files under ComfyUI's and OneTrainer's names, and other changes: LoHa, LoKr, differences, norms."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoHaConfig, LoKrConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ldm.errors import LdmWarning, UserError
from ldm.models.adapters.fuse import fuse_loras
from ldm.models.adapters.lora import LoraSettings, apply_lora
from ldm.models.adapters.lora_files import read_lora_file
from ldm.models.adapters.lora_names import kohya_name
from ldm.models.adapters.lycoris import full_change
from ldm.models.families.original_names import unet_layer_in_file
from ldm.models.families.stable_diffusion import SD1, SD2
from tests.support.tiny_loras import EVERYWHERE, as_kohya, assert_same, networks_of, trained
from tests.support.tiny_models import make_sd1, make_sd2, make_sdxl

LINEAR, CONV = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q", "mid_block.resnets.0.conv1"
NORM = "mid_block.resnets.0.norm1"


@pytest.fixture(scope="module")
def sd1(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The plain networks of a model; no test changes them."""
    return networks_of(make_sd1(tmp_path_factory.mktemp("sd1")))


def as_comfy(file: Path, networks: dict[str, Any], text: str) -> Path:
    """A file of kohya's naming with the names that ComfyUI has for the same layers."""
    names: dict[str, str] = {}
    for part, prefix in (
        ("unet", "diffusion_model."),
        ("text_encoder", f"text_encoders.{text}.transformer.text_model."),
    ):
        for layer, _ in networks[part].named_modules():
            original = unet_layer_in_file(layer) if part == "unet" else layer.removeprefix("text_model.")
            names[kohya_name(layer, SD1.lora[part])] = f"{prefix}{original}"
    tensors = load_file(file)
    save_file(
        {f"{names[name.partition('.')[0]]}.{name.partition('.')[2]}": t for name, t in tensors.items()}, file
    )
    return file


@pytest.mark.parametrize(("make", "family", "text"), [(make_sd1, SD1, "clip_l"), (make_sd2, SD2, "clip_h")])
def test_comfyui_names_are_read(make: Callable[[Path], Any], family: Any, text: str, tmp_path: Path) -> None:
    weights, plain = trained(make(tmp_path), EVERYWHERE), networks_of(make(tmp_path))
    file = as_comfy(as_kohya(weights, tmp_path), plain, text)
    names = load_file(file)
    assert "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.lora_up.weight" in names
    assert f"text_encoders.{text}.transformer.text_model.encoder.layers.0.mlp.fc1.alpha" in names
    assert_same(read_lora_file(file, plain, family.lora), weights)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("diffusion_model.double_blocks.0.img_attn.qkv.lora_A.weight", "a LoRA of Flux"),
        ("diffusion_model.joint_blocks.0.x_block.attn.qkv.lora_A.weight", "a LoRA of Stable Diffusion 3"),
        ("transformer.blocks.0.attn.to_q.lora_A.weight", "a LoRA of a diffusion transformer"),
        (
            "text_encoders.clip_g.transformer.text_model.encoder.layers.0.mlp.fc1.lora_up.weight",
            "Diffusion XL",
        ),
        ("lora_te2_text_projection.alpha", "a LoRA of Stable Diffusion XL"),
        ("lora_unet_mid_block_attentions_0_proj_in.oft_blocks", "an OFT adapter"),
        ("lora_unet_mid_block_attentions_0_proj_in.on_input", "an IA3 adapter"),
        ("lora_unet_mid_block_attentions_0_proj_in.a1.weight", "a GLoRA"),
    ],
)
def test_what_is_not_read_is_named_for_what_it_is(
    name: str, kind: str, sd1: dict[str, Any], tmp_path: Path
) -> None:
    file = as_kohya(trained(make_sd1(tmp_path), LoraSettings(rank=2)), tmp_path)
    save_file({**load_file(file), name: torch.zeros(2, 2)}, file)
    with pytest.raises(UserError, match=kind):
        read_lora_file(file, sd1)


def test_embeddings_beside_a_lora_do_not_hide_it(sd1: dict[str, Any], tmp_path: Path) -> None:
    weights = trained(make_sd1(tmp_path), LoraSettings(rank=2))
    file = as_kohya(weights, tmp_path)
    save_file({**load_file(file), "bundle_emb.my-cat.string_to_param.*": torch.zeros(2, 32)}, file)
    with pytest.warns(LdmWarning, match="also holds embeddings, which are not read: my-cat"):
        assert_same(read_lora_file(file, sd1), weights)


def test_ai_toolkit_names_a_magnitude_in_its_own_way(sd1: dict[str, Any], tmp_path: Path) -> None:
    weights = trained(make_sd1(tmp_path), LoraSettings(rank=2, use_dora=True))
    file = as_kohya(weights, tmp_path)
    save_file({n.replace(".dora_scale", ".magnitude"): t.reshape(-1) for n, t in load_file(file).items() if "dora" in n}
              | {n: t for n, t in load_file(file).items() if "dora" not in n}, file)  # fmt: skip
    assert_same(read_lora_file(file, sd1), weights)


class Two(nn.Module):
    """A linear layer and a convolution, with sizes that are no squares."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.conv = nn.Linear(24, 40), nn.Conv2d(24, 40, 3)


@pytest.mark.filterwarnings("ignore")  # of peft
@pytest.mark.parametrize("tucker", [False, True])
@pytest.mark.parametrize("options", [{}, {"decompose_both": True}, {"decompose_factor": 2}], ids=str)
@pytest.mark.parametrize("kind", [LoHaConfig, LoKrConfig])
def test_loha_and_lokr_equal_peft(kind: Any, options: dict[str, Any], tucker: bool) -> None:
    if kind is LoHaConfig and options:
        return
    options = {**options, "use_effective_conv2d": tucker, "target_modules": ["linear", "conv"]}
    torch.manual_seed(0)
    model = get_peft_model(Two(), kind(r=2, alpha=3, init_weights=False, **options))
    for name in ("linear", "conv"):
        layer: Any = model.base_model.model.get_submodule(name)
        tensors = {
            key.split(".")[0]: value.detach() for key, value in layer.named_parameters() if ".default" in key
        }
        change = full_change(name, {**tensors, "alpha": torch.tensor(3.0)}, layer.base_layer.weight.shape)
        torch.testing.assert_close(change, layer.get_delta_weight("default"))


def test_two_whole_factors_of_a_lokr_have_no_alpha() -> None:
    one, two = torch.randn(2, 3), torch.randn(5, 4)
    change = full_change(
        "x", {"lokr_w1": one, "lokr_w2": two, "alpha": torch.tensor(9.0)}, torch.Size((10, 12))
    )
    torch.testing.assert_close(change, torch.kron(one, two))


def test_a_convolution_in_three_factors_is_a_lora(sd1: dict[str, Any], tmp_path: Path) -> None:
    """up mid down, as LoCon stores a convolution with Tucker decomposition."""
    down, core, up = torch.randn(2, 32, 1, 1), torch.randn(2, 2, 3, 3), torch.randn(32, 2, 1, 1)
    stem = kohya_name(CONV, SD1.lora["unet"])
    tensors = {
        "lora_down.weight": down,
        "lora_mid.weight": core,
        "lora_up.weight": up,
        "alpha": torch.tensor(1.0),
    }
    save_file({f"{stem}.{name}": tensor for name, tensor in tensors.items()}, tmp_path / "x.safetensors")
    changed = {"unet": copy.deepcopy(sd1["unet"])}
    apply_lora(changed, read_lora_file(tmp_path / "x.safetensors", sd1))
    expected = torch.einsum("or,rskl,si->oikl", up[:, :, 0, 0], core, down[:, :, 0, 0]) / 2
    moved = changed["unet"].get_submodule(CONV).weight - sd1["unet"].get_submodule(CONV).weight
    torch.testing.assert_close(moved, expected, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def whole(sd1: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Tensor]]:
    """A file with differences of a layer, of its bias and of a norm; and the changes of the parameters."""
    unet, file = sd1["unet"], tmp_path_factory.mktemp("whole") / "x.safetensors"
    changes = {
        name: 0.1 * torch.randn(unet.get_parameter(name).shape)
        for name in (f"{CONV}.weight", f"{CONV}.bias", f"{NORM}.weight", f"{NORM}.bias")
    }
    ends = {
        f"{CONV}.weight": "diff",
        f"{CONV}.bias": "diff_b",
        f"{NORM}.weight": "w_norm",
        f"{NORM}.bias": "b_norm",
    }
    stem = {name: kohya_name(name.rpartition(".")[0], SD1.lora["unet"]) for name in changes}
    save_file({f"{stem[name]}.{ends[name]}": change for name, change in changes.items()}, file)
    return file, {f"unet.{name}": change for name, change in changes.items()}


def test_differences_and_norms_are_added(whole: tuple[Path, dict[str, Tensor]], sd1: dict[str, Any]) -> None:
    weights = read_lora_file(whole[0], sd1)
    assert weights.configs == {} and weights.changes.keys() == whole[1].keys()
    changed = copy.deepcopy(sd1)
    apply_lora(changed, weights, scale=0.5)
    for name, change in whole[1].items():
        part, _, parameter = name.partition(".")
        before = sd1[part].get_parameter(parameter)
        torch.testing.assert_close(changed[part].get_parameter(parameter), before + 0.5 * change)
    with pytest.raises(UserError, match="only LoRA and DoRA can be trained further"):
        apply_lora(copy.deepcopy(sd1), weights, fuse=False)


def test_differences_beside_a_dora_are_the_sum_of_both(
    whole: tuple[Path, dict[str, Tensor]], sd1: dict[str, Any], tmp_path: Path
) -> None:
    dora = trained(make_sd1(tmp_path), LoraSettings(rank=2, use_dora=True))
    both, alone = copy.deepcopy(sd1), copy.deepcopy(sd1)
    fuse_loras(both, [(dora, 0.7), (read_lora_file(whole[0], sd1), 0.5)])
    apply_lora(alone, dora, scale=0.7)
    for name, change in whole[1].items():
        part, _, parameter = name.partition(".")
        torch.testing.assert_close(
            both[part].get_parameter(parameter), sd1[part].get_parameter(parameter) + 0.5 * change
        )
    weight = f"{LINEAR}.weight"
    torch.testing.assert_close(both["unet"].get_parameter(weight), alone["unet"].get_parameter(weight))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hada_w1_a": (16, 2), "hada_w1_b": (2, 16)}, "has no hada_w2_a"),
        (
            {"hada_w1_a": (32, 2), "hada_w1_b": (2, 32), "hada_w2_a": (32, 3), "hada_w2_b": (2, 32)},
            "do not fit",
        ),
        ({"lokr_w1": (2, 2), "lokr_w2": (2, 2)}, r"has \[4, 4\], the model \[32, 32\]"),
        ({"lokr_w1": (2, 2)}, "has no lokr_w2"),
        ({"diff": (32, 32), "lora_up.weight": (32, 2)}, "also has up: one kind of change"),
        ({"hada_w1_a": (32, 2), "dora_scale": (32, 1)}, "also has dora_scale"),
        ({"diff_b": (31,)}, "has no bias in this model"),
        # 40 GB and 400 GB, if they were multiplied before their shapes are compared
        (
            {
                "hada_w1_a": (10**5, 1),
                "hada_w1_b": (1, 10**5),
                "hada_w2_a": (10**5, 1),
                "hada_w2_b": (1, 10**5),
            },
            r"has \[100000, 100000\], the model \[32, 32\]",
        ),
        ({"lokr_w1": (10**3, 10**2), "lokr_w2": (10**3, 10**3)}, r"has \[1000000, 100000\], the model"),
        (
            {"lokr_w1": (1, 1), "lokr_t2": (1, 10**5, 1, 1), "lokr_w2_a": (1, 32), "lokr_w2_b": (10**5, 32)},
            "a rank of 100,000",
        ),
    ],
)
def test_an_incomplete_change_is_refused_by_name(
    change: dict[str, tuple[int, ...]], message: str, sd1: dict[str, Any], tmp_path: Path
) -> None:
    stem, file = kohya_name(LINEAR, SD1.lora["unet"]), tmp_path / "x.safetensors"
    save_file({f"{stem}.{name}": torch.zeros(shape) for name, shape in change.items()}, file)
    with pytest.raises(UserError, match=message):
        read_lora_file(file, sd1)


SHAPES = {
    "lokr": {"lokr_w1": (4, 2), "lokr_w2_a": (-4, 2), "lokr_w2_b": (2, -2)},
    "loha": {"hada_w1_a": (-1, 3), "hada_w1_b": (3, -1), "hada_w2_a": (-1, 3), "hada_w2_b": (3, -1)},
}
"""Of a linear layer: a negative number is the width of the layer over that number."""


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("make", [make_sd1, make_sd2, make_sdxl])
def test_lycoris_files_of_every_family(make: Callable[[Path], Any], kind: str, tmp_path: Path) -> None:
    """With kohya's names: in SDXL those of single files, and `lora_te1_` and `lora_te2_`."""
    parts = make(tmp_path)
    networks, lora = networks_of(parts), parts.family.lora
    unet = next(n for n, _ in networks["unet"].named_modules() if n.endswith("attn1.to_q"))
    layers = {part: "text_model.encoder.layers.0.mlp.fc1" for part in networks} | {"unet": unet}
    torch.manual_seed(0)
    written, expected = {}, {}
    for part, name in layers.items():
        layer = _layer(networks[part], name)
        tensors = {
            end: torch.randn(
                [_side(size, width) for size, width in zip(shape, layer.weight.shape, strict=True)]
            )
            for end, shape in SHAPES[kind].items()
        }
        tensors["alpha"] = torch.tensor(5.0)
        written |= {f"{kohya_name(name, lora[part])}.{end}": tensor for end, tensor in tensors.items()}
        expected[part] = layer.weight + 0.5 * by_hand(kind, tensors)
    save_file(written, tmp_path / "x.safetensors")
    changed = copy.deepcopy(networks)
    apply_lora(changed, read_lora_file(tmp_path / "x.safetensors", networks, lora), scale=0.5)
    for part, name in layers.items():
        torch.testing.assert_close(_layer(changed[part], name).weight, expected[part])
    if make is make_sdxl:
        assert {name.partition("_")[0] + "_" + name.split("_")[1] for name in written} == {
            "lora_unet", "lora_te1", "lora_te2",
        }  # fmt: skip
        assert any(name.startswith("lora_unet_input_blocks_") for name in written)


def _layer(network: nn.Module, name: str) -> Any:
    """Older text encoders have `text_model.` in their layers' names."""
    names = {each for each, _ in network.named_modules()}
    return network.get_submodule(name if name in names else name.removeprefix("text_model."))


def _side(size: int, width: int) -> int:
    return size if size > 0 else width // -size


def by_hand(kind: str, tensors: dict[str, Tensor]) -> Tensor:
    """The formulas of both papers."""
    if kind == "lokr":
        return torch.kron(tensors["lokr_w1"], tensors["lokr_w2_a"] @ tensors["lokr_w2_b"]) * 5 / 2
    one, two = (tensors[f"hada_w{i}_a"] @ tensors[f"hada_w{i}_b"] for i in (1, 2))
    return one * two * 5 / 3


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("alpha", [0.0, float("inf"), float("nan"), [1.0, 2.0]])
def test_a_broken_alpha_is_refused_and_zero_is_none(
    kind: str, alpha: Any, sd1: dict[str, Any], tmp_path: Path
) -> None:
    stem, file = kohya_name(LINEAR, SD1.lora["unet"]), tmp_path / "x.safetensors"
    tensors = {end: torch.ones([_side(size, 32) for size in shape]) for end, shape in SHAPES[kind].items()}
    tensors["alpha"] = torch.tensor(alpha)
    save_file({f"{stem}.{end}": tensor for end, tensor in tensors.items()}, file)
    if alpha == 0:
        (change,) = read_lora_file(file, sd1).changes.values()
        assert not change.any()
        return
    with pytest.raises(UserError, match=r"not finite|do not fit each other"):
        read_lora_file(file, sd1)

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ldm.errors import UserError
from ldm.io.files import write_tensors
from ldm.io.safetensors_header import read_header
from ldm.models.adapters.lora import LoraSettings, LoraWeights, apply_lora
from ldm.models.adapters.lora_files import lora_files, read_lora, read_lora_file
from ldm.models.adapters.lora_layers import to_layers
from ldm.models.adapters.lora_names import kohya_name
from ldm.models.families.stable_diffusion import SD1
from ldm.models.loading.model import ModelParts
from tests.support.tiny_loras import (
    EVERYWHERE,
    FORMATS,
    as_diffusers,
    as_kohya,
    as_peft,
    assert_same,
    networks_of,
    trained,
    uneven,
)
from tests.support.tiny_models import make_sd1, make_sd2

DORA = EVERYWHERE.model_copy(update={"use_dora": True})
SOME = LoraSettings(rank=2, alpha=5, target_modules=("to_k", "conv1", "fc1"), text_encoder=True)


def rewrite(path: Path, change: Callable[[dict[str, Tensor]], Any], metadata: Any = None) -> Path:
    tensors = load_file(path)
    replaced = change(tensors)
    save_file(tensors if replaced is None else replaced, path, metadata)
    return path


@pytest.fixture(scope="module")
def sd1(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The plain networks of a model; no test changes them."""
    return networks_of(make_sd1(tmp_path_factory.mktemp("sd1")))


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> LoraWeights:
    """A LoRA on some layers of that model."""
    return trained(make_sd1(tmp_path_factory.mktemp("lora")), SOME)


@pytest.mark.parametrize(("make", "settings"), [(make_sd1, EVERYWHERE), (make_sd2, DORA), (make_sd1, SOME)])
def test_every_format_reads_back_equal(
    make: Callable[[Path], ModelParts], settings: LoraSettings, tmp_path: Path
) -> None:
    weights, plain = trained(make(tmp_path), settings), networks_of(make(tmp_path))
    for name, write in FORMATS.items():
        file = write(weights, tmp_path / name)
        assert_same(read_lora_file(file, plain), weights)
    assert_same(read_lora_file(tmp_path / "kohya", plain), weights)  # the one file in a folder
    assert_same(read_lora(tmp_path / "diffusers" / "pytorch_lora_weights.safetensors"), weights)


def test_alpha_is_not_the_rank_and_may_differ_between_layers(tmp_path: Path) -> None:
    plain = make_sd1(tmp_path)
    weights = uneven(trained(make_sd1(tmp_path)), plain)
    config = weights.configs["unet"]
    assert (config["r"], config["lora_alpha"]) == (3, 7)
    assert set(config["rank_pattern"].values()) == {2} and set(config["alpha_pattern"].values()) == {2.5}
    for write in (as_diffusers, as_peft):
        assert_same(read_lora_file(write(weights, tmp_path / write.__name__), networks_of(plain)), weights)
    stored = load_file(as_kohya(weights, tmp_path))
    assert {float(t) for name, t in stored.items() if name.endswith(".alpha")} == {7}
    again = to_layers(read_lora_file(tmp_path / "film.safetensors", networks_of(plain)))
    for part, layers in to_layers(weights).items():
        for name, layer in layers.items():
            found = again[part][name]
            torch.testing.assert_close(
                found.up * found.alpha / found.rank, layer.up * layer.alpha / layer.rank, msg=name
            )


def test_the_contents_of_a_kohya_file(weights: LoraWeights, tmp_path: Path) -> None:
    stored = load_file(as_kohya(weights, tmp_path))
    stem = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_k"
    assert stored[f"{stem}.lora_down.weight"].shape == (2, 16) and float(stored[f"{stem}.alpha"]) == 5
    assert stored["lora_unet_mid_block_resnets_0_conv1.lora_up.weight"].shape == (32, 2, 1, 1)
    assert "lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight" in stored


def test_a_dora_in_a_kohya_file_is_as_lycoris_defines_it(tmp_path: Path) -> None:
    """W' = m (W + alpha/rank B A) / |W + alpha/rank B A|, with the norm over all inputs of an output."""
    weights = trained(make_sd1(tmp_path), EVERYWHERE.model_copy(update={"use_dora": True}))
    stored, base, fused = load_file(as_kohya(weights, tmp_path)), make_sd1(tmp_path), make_sd1(tmp_path)
    apply_lora(networks_of(fused), weights)
    for part, layers in to_layers(weights).items():
        for name in layers:
            stem = kohya_name(name, SD1.lora[part])
            weight = networks_of(base)[part].get_submodule(name).weight
            down, up, length = (
                stored[f"{stem}.{k}"] for k in ("lora_down.weight", "lora_up.weight", "dora_scale")
            )
            change = (up.flatten(1) @ down.flatten(1)).reshape(weight.shape)
            moved = weight + change * float(stored[f"{stem}.alpha"]) / len(down)
            expected = length * moved / moved.flatten(1).norm(dim=1).reshape(length.shape)
            assert length.shape == (len(weight), *[1] * (weight.ndim - 1))
            torch.testing.assert_close(networks_of(fused)[part].get_submodule(name).weight, expected)


def old_name(name: str) -> str:
    """A name in the form that diffusers wrote until 2023."""
    for new, old in (
        ("attn1.", "attn1.processor."), ("attn2.", "attn2.processor."), ("to_out.0", "to_out"), ("q_proj", "to_q"),
        ("k_proj", "to_k"), ("v_proj", "to_v"), ("out_proj", "to_out"), ("unet.", ""), (".lora_A.", "_lora.down."),
        (".lora_B.", "_lora.up."), (".lora_linear_layer.", "_lora."),
    ):  # fmt: skip
        name = name.replace(new, old)
    return name


def newer_name(name: str) -> str:
    """A name in the form that diffusers wrote for a year after that."""
    return name.replace(".lora_A.", ".lora.down.").replace(".lora_B.", ".lora.up.")


def test_the_names_of_older_diffusers_are_read_too(tmp_path: Path) -> None:
    weights = trained(make_sd1(tmp_path), LoraSettings(rank=2, text_encoder=True))
    plain, file = networks_of(make_sd1(tmp_path)), as_diffusers(weights, tmp_path)
    rewrite(file, lambda tensors: {old_name(name): t for name, t in tensors.items()})
    names = load_file(file).keys()
    assert any("attn2.processor.to_out_lora.down.weight" in name for name in names)
    assert "text_encoder.text_model.encoder.layers.0.self_attn.to_q_lora.up.weight" in names
    assert_same(read_lora_file(file, plain), weights)  # alpha is the rank if none is given
    as_diffusers(weights, tmp_path)
    rewrite(file, lambda tensors: {newer_name(name): t for name, t in tensors.items()})
    assert_same(read_lora_file(file, plain), weights)


def test_alpha_is_read_from_the_configuration_of_peft(
    weights: LoraWeights, sd1: dict[str, Any], tmp_path: Path
) -> None:
    folder = as_peft(weights, tmp_path / "peft")
    config = folder / "unet" / "adapter_config.json"

    def alpha_with(**changes: Any) -> float:
        as_peft(weights, folder)
        config.write_text(json.dumps(json.loads(config.read_text()) | changes))
        return float(read_lora_file(folder, sd1).configs["unet"]["lora_alpha"])

    assert alpha_with() == 5 and alpha_with(use_rslora=True) == pytest.approx(5 * 2**0.5)
    for changes, message in (
        ({"peft_type": "LOHA"}, "is of peft's type LOHA"),
        ({"lora_alpha": "x"}, "lora_alpha is 'x': it must be a number"),
        ({"lora_alpha": 0}, "has alpha 0"),
    ):
        with pytest.raises(UserError, match=message):
            alpha_with(**changes)
    config.unlink()
    with pytest.raises(UserError, match=r"adapter_config.json does not exist"):
        read_lora_file(folder, sd1)


def test_linear_layers_may_be_stored_as_1x1_convolutions(tmp_path: Path) -> None:
    weights = trained(make_sd2(tmp_path), LoraSettings(rank=2, target_modules=("proj_in",)))
    file = as_kohya(weights, tmp_path)
    rewrite(file, lambda tensors: {n: t[:, :, None, None] if t.ndim == 2 else t for n, t in tensors.items()})
    assert_same(read_lora_file(file, networks_of(make_sd2(tmp_path))), weights)


def test_half_precision_is_stored_and_read_as_float32(
    weights: LoraWeights, sd1: dict[str, Any], tmp_path: Path
) -> None:
    rounded = LoraWeights({n: t.half().float() for n, t in weights.tensors.items()}, weights.configs)
    for name, write in FORMATS.items():
        file = write(weights, tmp_path / name, dtype=torch.float16)
        assert all(t.dtype == torch.float16 for path in lora_files(file) for t in load_file(path).values())
        assert_same(read_lora_file(file, sd1), rounded)


@pytest.fixture(scope="module")
def proj_in(tmp_path_factory: pytest.TempPathFactory) -> LoraWeights:
    """A LoRA on the 1x1 convolutions before the attention."""
    settings = LoraSettings(rank=3, target_modules=("proj_in",))
    return trained(make_sd1(tmp_path_factory.mktemp("proj_in")), settings)


DOWN, UP = (
    "lora_unet_mid_block_attentions_0_proj_in.lora_down.weight",
    "lora_unet_mid_block_attentions_0_proj_in.lora_up.weight",
)
SCALE = DOWN.replace("lora_down.weight", "dora_scale")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(UP), "unet.mid_block.attentions.0.proj_in has no up weights: the file is incomplete"),
        (lambda t: t.update({UP: torch.zeros(32, 9, 1, 1)}), r"has \[32, 9, 1, 1\], the model \[32, 3, 1, 1\]"),
        (lambda t: t.update({DOWN: torch.zeros(())}), "has no down weights"),
        (lambda t: t.update({DOWN.replace("mid", "my"): t.pop(DOWN)}), "does not match a layer of this model: is it"),
        (lambda t: t.update({"unet.conv_in.weight": torch.zeros(1)}), "unet.conv_in.weight does not belong to a LoRA"),
        (lambda t: t.update({"unet.mid_block.attentions.0.proj_in.lora_A.weight": t[DOWN]}), "is also stored under"),
        (lambda t: t.update({SCALE: torch.ones(32, 1, 1, 1)}), "magnitudes .DoRA. for some layers of the unet only"),
        (lambda t: t.update({SCALE: torch.ones(1, 32, 1, 1)}), r"magnitudes \[1, 32, 1, 1\]: only those of the 32 out"),
        (lambda t: t.update({"lora_te2_text_projection.alpha": t[DOWN]}), "is a LoRA of Stable Diffusion XL"),
        (lambda t: t.update({DOWN.replace("lora_down.weight", "hada_w1_a"): t[DOWN]}), "also has down: one kind"),
        (lambda t: t.clear(), "has no tensors"),
    ],
)  # fmt: skip
def test_an_unreadable_file_is_refused_by_name(
    change: Callable[[dict[str, Tensor]], Any],
    message: str,
    proj_in: LoraWeights,
    sd1: dict[str, Any],
    tmp_path: Path,
) -> None:
    file = as_kohya(proj_in, tmp_path)
    tensors = load_file(file)
    change(tensors)
    write_tensors(file, tensors)
    with pytest.raises(UserError, match=message):
        read_lora_file(file, sd1)


def test_where_a_lora_is_found(weights: LoraWeights, tmp_path: Path) -> None:
    run = as_diffusers(weights, tmp_path / "run" / "pipeline")
    assert lora_files(tmp_path / "run") == [run]
    peft = as_peft(weights, tmp_path / "peft")
    assert [file.parent.name for file in lora_files(peft)] == ["unet", "text_encoder"]
    assert len(lora_files(peft / "unet")) == 1
    as_diffusers(weights, peft)
    for path, message in (
        (peft, "holds more than one LoRA: name one file of it"),
        (tmp_path / "gone", "no LoRA '.*gone': name a .safetensors file"),
        (tmp_path / "lora.pt", "is a pickle: only safetensors are read"),
    ):
        with pytest.raises(UserError, match=message):
            lora_files(path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty holds no LoRA"):
        lora_files(tmp_path / "empty")


def test_a_lora_of_another_model_is_refused_by_name(weights: LoraWeights, tmp_path: Path) -> None:
    file = as_diffusers(weights, tmp_path)
    with pytest.raises(UserError, match=r"fc1 has \[2, 32\], the model \[2, 48\]: is it of another model"):
        read_lora_file(file, networks_of(make_sd2(tmp_path)))


def test_an_adapter_of_ours_must_have_its_alpha(
    weights: LoraWeights, sd1: dict[str, Any], tmp_path: Path
) -> None:
    file = rewrite(as_diffusers(weights, tmp_path), lambda tensors: None)
    with pytest.raises(UserError, match="has no lora_adapter_metadata in its header: restore the file"):
        read_lora(file)
    rewrite(file, lambda tensors: None, {"lora_adapter_metadata": "["})
    with pytest.raises(UserError, match="lora_adapter_metadata in its header is broken"):
        read_lora_file(file, sd1)


def test_the_header_holds_the_hash_of_what_follows(weights: LoraWeights, tmp_path: Path) -> None:
    said = [
        read_header(as_kohya(weights, tmp_path, metadata={"modelspec.title": title})).metadata
        for title in ("one", "another, longer")
    ]
    data = (tmp_path / "film.safetensors").read_bytes()
    digest = hashlib.sha256(data[8 + int.from_bytes(data[:8], "little") :]).hexdigest()
    assert {m["modelspec.hash_sha256"] for m in said} == {f"0x{digest}"} and said[0][
        "sshs_model_hash"
    ] == digest

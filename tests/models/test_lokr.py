"""LoKr: its start, its forward, its files, and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoKrConfig, PeftModel, inject_adapter_in_model
from safetensors.torch import load_file
from torch import Tensor, nn

from ldm.config import validate
from ldm.errors import UserError
from ldm.models.adapters.lora import (
    LoraSettings,
    LoraWeights,
    add_lora,
    apply_lora,
    fuse_lora,
    lora_parameters,
    lora_weights,
)
from ldm.models.adapters.lora_files import read_lora, read_lora_file
from ldm.models.adapters.lora_layers import lokr_layers
from ldm.models.adapters.lycoris import missing_factors, written_factors
from ldm.models.dropout import KeyedDropout, set_dropout_keys
from ldm.models.parts import ModelParts
from tests.support.tiny_loras import (
    as_diffusers,
    as_kohya,
    as_peft,
    assert_same,
    disturb,
    networks_of,
    predict,
    trained,
)
from tests.support.tiny_models import make_sd1, make_sdxl

EVERYWHERE = LoraSettings(kind="lokr", rank=3, factor=4, target_modules="all", text_encoder=True)
MADE_BY: dict[str, Callable[[Path], ModelParts]] = {"sd1": make_sd1, "sdxl": make_sdxl}
LINEAR = "unet.mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj"


@pytest.fixture(scope="module")
def sd1(tmp_path_factory: pytest.TempPathFactory) -> ModelParts:
    """A model that no test changes."""
    return make_sd1(tmp_path_factory.mktemp("sd1"))


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> tuple[ModelParts, LoraWeights]:
    """A model with a trained LoKr in it, and the LoKr."""
    parts = make_sd1(tmp_path_factory.mktemp("live"))
    return parts, trained(parts, EVERYWHERE)


@pytest.mark.parametrize("family", MADE_BY)
def test_an_untrained_lokr_changes_no_bit_and_draws_nothing(family: str, tmp_path: Path) -> None:
    parts = MADE_BY[family](tmp_path)
    before, state = predict(parts), torch.get_rng_state()
    add_lora(networks_of(parts), EVERYWHERE, seed=3)
    parts.denoiser.train()  # peft's own layers would draw here
    assert torch.equal(predict(parts), before) and torch.equal(torch.get_rng_state(), state)
    kinds = {name.rpartition(".")[2] for name in lora_weights(networks_of(parts)).tensors}
    assert kinds == {"lokr_w1", "lokr_w2", "lokr_w2_a", "lokr_w2_b"}
    added = [each for network in networks_of(parts).values() for each in lora_parameters(network)]
    assert {each.dtype for each in added} == {torch.float32}


def test_the_start_is_a_function_of_the_seed_alone(tmp_path: Path) -> None:
    def start(seed: int, text_encoder: bool) -> dict[str, Tensor]:
        networks = networks_of(make_sd1(tmp_path))
        add_lora(networks, LoraSettings(kind="lokr", rank=2, factor=4, text_encoder=text_encoder), seed)
        return lora_weights(networks).tensors

    one, other, both = start(5, False), start(6, False), start(5, True)
    drawn = [name for name, tensor in one.items() if tensor.any()]
    assert {name.rpartition(".")[2] for name in drawn} == {"lokr_w1", "lokr_w2_a"}
    assert one.keys() < both.keys() and all(torch.equal(one[name], both[name]) for name in one)
    assert not any(torch.equal(one[name], other[name]) for name in drawn)


class Two(nn.Module):
    """A linear layer and a convolution, with sizes that are no squares."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.conv = nn.Linear(24, 40), nn.Conv2d(24, 40, 3, stride=2, padding=1)

    def forward(self, values: Tensor) -> tuple[Tensor, Tensor]:
        return self.linear(values), self.conv(values.permute(0, 3, 1, 2))


@pytest.mark.parametrize("factor", [None, 2, 8, 16])
@pytest.mark.parametrize("rank", [2, 50])
def test_outputs_and_gradients_equal_those_of_peft(rank: int, factor: int | None) -> None:
    """peft multiplies with the whole product; factor 16 divides neither size."""
    ours, theirs = Two(), Two()
    config = {"r": rank, "alpha": 3, "decompose_factor": factor or -1, "target_modules": ["linear", "conv"]}
    inject_adapter_in_model(LoKrConfig(**config), theirs)  # type: ignore[arg-type]
    apply = LoraSettings(
        kind="lokr", rank=rank, alpha=3, factor=factor, target_modules=("linear", "conv"), dropout=0.0
    )
    add_lora({"unet": ours}, apply, seed=0)
    disturb({"unet": ours})
    theirs.load_state_dict(ours.state_dict())
    values = torch.randn(2, 6, 6, 24, generator=torch.Generator().manual_seed(0))
    for one, two in zip(ours(values), theirs(values), strict=True):
        torch.testing.assert_close(one, two)
        one.square().sum().backward()
        two.square().sum().backward()
    found = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        if "lokr" in name:
            torch.testing.assert_close(parameter.grad, found[name].grad, rtol=1e-4, atol=1e-4)


def test_dropout_is_of_the_inputs_and_depends_on_the_sample(tmp_path: Path) -> None:
    network = Two()
    settings = LoraSettings(kind="lokr", rank=2, target_modules=("linear", "conv"), dropout=0.5)
    add_lora({"unet": network}, settings, seed=0)
    disturb({"unet": network})
    values = torch.randn(3, 6, 6, 24, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    assert sum(isinstance(each, KeyedDropout) for each in network.modules()) == 2
    whole = network.eval()(values)[0]
    network.train()
    set_dropout_keys(network, noise)
    dropped = network(values)[0]
    set_dropout_keys(network, noise[1:])
    assert not torch.equal(dropped, whole)
    torch.testing.assert_close(network(values[1:])[0], dropped[1:])


@pytest.mark.parametrize("family", MADE_BY)
def test_fused_is_the_live_model_in_plain_layers(family: str, tmp_path: Path) -> None:
    parts, fused, again = (MADE_BY[family](tmp_path) for _ in range(3))
    weights, before = trained(parts, EVERYWHERE), predict(fused)
    plain = list(fused.denoiser.state_dict())
    apply_lora(networks_of(fused), weights)
    assert list(fused.denoiser.state_dict()) == plain and not hasattr(fused.denoiser.unet, "peft_config")
    torch.testing.assert_close(predict(fused), predict(parts), rtol=1e-4, atol=1e-4)
    assert (predict(parts) - before).abs().max() > 0.1
    apply_lora(networks_of(again), weights, fuse=False)
    assert torch.equal(predict(again), predict(parts))
    assert_same(lora_weights(networks_of(again)), weights)


def test_an_infinite_lokr_is_not_fused(tmp_path: Path) -> None:
    unet = make_sd1(tmp_path).denoiser.unet
    add_lora({"unet": unet}, LoraSettings(kind="lokr", rank=1), seed=0)
    lora_parameters(unet)[-1].data.fill_(torch.inf)
    with pytest.raises(UserError, match=r"the LoRA makes .* infinite or NaN"):
        fuse_lora(unet)


def changed(parts: ModelParts, weights: LoraWeights, make: Any, folder: Path) -> dict[str, Tensor]:
    networks = networks_of(make(folder))
    apply_lora(networks, weights)
    return {f"{part}.{name}": p for part, one in networks.items() for name, p in one.named_parameters()}


@pytest.mark.parametrize(
    ("family", "form", "alpha"),
    [
        ("sd1", as_kohya, None),
        ("sd1", as_kohya, 5.0),
        ("sd1", as_peft, 5.0),
        ("sd1", as_diffusers, 5.0),
        ("sdxl", as_kohya, 5.0),
        pytest.param("sdxl", as_peft, 5.0, marks=pytest.mark.slow),
        pytest.param("sdxl", as_diffusers, 5.0, marks=pytest.mark.slow),
    ],
)
def test_a_written_file_is_read_to_the_same_weights(
    family: str, form: Callable[..., Path], alpha: float | None, tmp_path: Path
) -> None:
    make = MADE_BY[family]
    parts = make(tmp_path)
    names = parts.family.lora
    weights = trained(parts, EVERYWHERE.model_copy(update={"alpha": alpha}))
    given = {"lora": names} if form is as_kohya else {}
    file, plain = form(weights, tmp_path / "file", **given), make(tmp_path)
    read = read_lora_file(file, networks_of(plain), names)
    assert read.configs == {} and len(read.changes) == len(
        {n.partition(".lokr_")[0] for n in weights.tensors}
    )
    one, two = (changed(plain, each, make, tmp_path) for each in (weights, read))
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=3e-7, atol=1e-8, msg=name)
    if form is as_diffusers:
        assert_same(read_lora(file), weights)
    if form is as_kohya:
        ends = {name.partition(".")[2] for name in load_file(file)}
        assert ends == {"lokr_w1", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "alpha"}
        prefixes = {name.partition("_")[2].partition("_")[0] for name in load_file(file)}
        assert prefixes == ({"unet", "te"} if family == "sd1" else {"unet", "te1", "te2"})


def test_peft_reads_its_folder(live: tuple[ModelParts, LoraWeights], tmp_path: Path) -> None:
    weights = live[1]
    folder = as_peft(weights, tmp_path / "peft")
    theirs, ours = make_sd1(tmp_path).denoiser.unet, make_sd1(tmp_path).denoiser.unet
    PeftModel.from_pretrained(theirs, str(folder / "unet")).merge_and_unload()
    apply_lora({"unet": ours}, LoraWeights(weights.tensors, {"unet": weights.configs["unet"]}))
    found = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(found[name], parameter, rtol=1e-6, atol=1e-7, msg=name)


def test_alpha_of_two_whole_factors_is_part_of_the_first() -> None:
    """peft multiplies with alpha / rank there, and LyCORIS does not."""
    one, two = torch.randn(2, 3), torch.randn(4, 5)
    found = written_factors({"lokr_w1": one, "lokr_w2": two}, alpha=6.0, rank=4)
    assert torch.equal(found["lokr_w1"], one * 1.5) and found["alpha"] == 4.0
    parts = {"lokr_w1": one, "lokr_w2_a": two, "lokr_w2_b": two}
    assert written_factors(parts, 6.0, 4)["alpha"] == 6.0


def test_factors_by_layer(live: tuple[ModelParts, LoraWeights]) -> None:
    layers = lokr_layers(live[1], "unet")
    assert layers.keys() == {
        name.removeprefix("unet.").partition(".lokr_")[0]
        for name in live[1].tensors
        if name.startswith("unet.")
    }
    assert set(layers[LINEAR.removeprefix("unet.")]) == {"lokr_w1", "lokr_w2_a", "lokr_w2_b"}


@pytest.mark.parametrize(
    ("kinds", "missing"),
    [
        (["lokr_w1", "lokr_w2", "alpha"], []),
        (["lokr_w1_a", "lokr_w1_b", "lokr_w2_a", "lokr_w2_b"], []),
        (["lokr_w1", "alpha"], ["lokr_w2"]),
        (["lokr_w1", "lokr_w2_b"], ["lokr_w2_a"]),
        (["lokr_w2"], ["lokr_w1"]),
        (["hada_w1_a", "hada_w1_b", "hada_w2_a"], ["hada_w2_b"]),
        (["diff"], []),
    ],
)
def test_missing_factors(kinds: list[str], missing: list[str]) -> None:
    assert list(missing_factors(kinds)) == missing


def with_config(folder: Path, **changes: Any) -> Path:
    path = folder / "unet/adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return folder


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"modules_to_save": ["conv_in"]}, "modules_to_save is .*this key is not supported: r, alpha"),
        ({"r": 0}, "r is '0': it must be a positive whole number"),
        ({"rank_pattern": {"to_q": 0}}, "rank_pattern gives to_q a rank of 0"),
        ({"alpha": "much"}, "alpha is 'much': it must be a number"),
        ({"peft_type": "LOHA"}, "of peft's type LOHA: LoRA, DoRA and LoKr are read"),
    ],
)
def test_a_configuration_that_is_not_understood_is_refused(
    changes: dict[str, Any], said: str, live: tuple[ModelParts, LoraWeights], sd1: ModelParts, tmp_path: Path
) -> None:
    folder = with_config(as_peft(live[1], tmp_path / "peft"), **changes)
    with pytest.raises(UserError, match=said):
        read_lora_file(folder, networks_of(sd1))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"kind": "lokr", "use_dora": True}, "use_dora is given, but kind is lokr"),
        ({"factor": 8}, "factor is given, but kind is lora: set kind: lokr"),
        ({"kind": "loha"}, "kind"),
        ({"kind": "lokr", "factor": 1}, "factor"),
        ({"kind": "lokr", "start": "x.safetensors"}, "kind is given, but the LoRA of start has its own"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        validate(LoraSettings, given)


def test_a_lokr_cannot_be_trained_further_from_a_file(
    live: tuple[ModelParts, LoraWeights], sd1: ModelParts, tmp_path: Path
) -> None:
    networks = networks_of(sd1)
    read = read_lora_file(as_kohya(live[1], tmp_path), networks)
    with pytest.raises(UserError, match="only LoRA and DoRA can be trained further"):
        apply_lora(networks, read, fuse=False)

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
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
)  # fmt: skip
from ldm.models.dropout import KeyedDropout, random_bits, set_dropout_keys
from ldm.models.loading.model import ModelParts
from tests.support.tiny_loras import EVERYWHERE, MADE_BY, disturb, networks_of, predict
from tests.support.tiny_models import make_sd1, make_sd2


@pytest.mark.parametrize("make", MADE_BY)
@pytest.mark.parametrize("use_dora", [False, True])
def test_an_untrained_lora_changes_no_bit(
    make: Callable[[Path], ModelParts], use_dora: bool, tmp_path: Path
) -> None:
    parts = make(tmp_path)
    before = predict(parts)
    add_lora(networks_of(parts), EVERYWHERE.model_copy(update={"use_dora": use_dora}), seed=3)
    assert torch.equal(predict(parts), before)


def test_on_a_half_precision_base_it_is_float32_and_still_changes_no_bit(tmp_path: Path) -> None:
    parts = make_sd1(tmp_path)
    parts.denoiser.half(), parts.text_encoder.half()
    before = predict(parts)
    add_lora(networks_of(parts), EVERYWHERE, seed=3)
    added = [p for network in networks_of(parts).values() for p in lora_parameters(network)]
    assert {p.dtype for p in added} == {torch.float32} and torch.equal(predict(parts), before)
    assert parts.denoiser.unet.conv_in.weight.dtype == torch.float16
    parts = make_sd1(tmp_path)
    parts.denoiser.half()
    with pytest.raises(UserError, match="float16: load the model in float32"):
        add_lora(networks_of(parts), LoraSettings(use_dora=True), seed=3)


def test_all_is_every_layer_of_the_blocks(tmp_path: Path) -> None:
    unet = make_sd1(tmp_path).denoiser.unet
    layers = {n for n, m in unet.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}
    add_lora({"unet": unet}, LoraSettings(target_modules="all"), seed=0)
    changed = {name.partition(".lora_")[0] for name, p in unet.named_parameters() if p.requires_grad}
    outside = {n for n in layers if n.startswith(("conv_in", "conv_out", "time_embedding"))}
    assert len(outside) == 4 and changed == layers - outside


def test_the_start_is_a_function_of_the_seed_alone(tmp_path: Path) -> None:
    def start(seed: int, text_encoder: bool, global_seed: int) -> dict[str, Tensor]:
        networks = networks_of(make_sd1(tmp_path))
        torch.manual_seed(global_seed)
        state = torch.get_rng_state()
        add_lora(networks, LoraSettings(rank=2, text_encoder=text_encoder), seed)
        assert torch.equal(torch.get_rng_state(), state)
        return lora_weights(networks).tensors

    one, other, both = start(5, False, 1), start(6, False, 1), start(5, True, 2)
    ups = [name for name in one if "lora_A" in name]
    assert ups and one.keys() < both.keys() and all(torch.equal(one[name], both[name]) for name in one)
    assert not any(torch.equal(one[name], other[name]) for name in ups)
    assert len({float(one[name].flatten()[0]) for name in ups}) == len(ups)


@pytest.mark.parametrize("use_dora", [False, True])
def test_fused_is_the_live_model_in_plain_layers(use_dora: bool, tmp_path: Path) -> None:
    live, fused = make_sd2(tmp_path), make_sd2(tmp_path)
    plain, before = list(fused.denoiser.state_dict()), predict(fused)
    add_lora(networks_of(live), EVERYWHERE.model_copy(update={"use_dora": use_dora}), seed=3)
    disturb(networks_of(live))
    weights = lora_weights(networks_of(live))
    assert weights.configs["unet"]["lora_alpha"] == 7 and weights.configs["unet"]["r"] == 3
    apply_lora(networks_of(fused), weights)
    assert list(fused.denoiser.state_dict()) == plain and not hasattr(fused.denoiser.unet, "peft_config")
    torch.testing.assert_close(predict(fused), predict(live), rtol=1e-4, atol=1e-4)
    assert (predict(live) - before).abs().max() > 0.1


def test_the_scale_of_a_lora(tmp_path: Path) -> None:
    parts = make_sd1(tmp_path)
    layer = parts.denoiser.unet.mid_block.attentions[0].proj_in
    start = layer.weight.detach().clone()
    add_lora(networks_of(parts), LoraSettings(rank=3, target_modules=("proj_in",)), seed=3)
    disturb(networks_of(parts))
    weights = lora_weights(networks_of(parts))

    def fused(*scales: float) -> Tensor:
        networks = networks_of(make_sd1(tmp_path))
        for scale in scales:  # several LoRAs, one after the other
            apply_lora(networks, weights, scale=scale)
        change: Tensor = networks["unet"].mid_block.attentions[0].proj_in.weight.detach() - start
        return change

    assert not fused(0.0).any() and fused(1.0).abs().max() > 1e-3
    torch.testing.assert_close(fused(0.25, 0.5), 0.75 * fused(1.0), rtol=1e-3, atol=1e-6)


def test_a_lora_can_be_applied_without_fusing_and_trained_further(tmp_path: Path) -> None:
    parts, other = make_sd1(tmp_path), make_sd1(tmp_path)
    add_lora(networks_of(parts), LoraSettings(rank=2, target_modules=("to_q", "conv1")), seed=3)
    disturb(networks_of(parts))
    apply_lora(networks_of(other), lora_weights(networks_of(parts)), fuse=False)
    assert torch.equal(predict(other), predict(parts))
    assert lora_parameters(other.denoiser.unet) and not lora_parameters(other.text_encoder.model)


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    networks = networks_of(make_sd1(tmp_path))
    with pytest.raises(UserError, match=r"unknown layer in lora.target_modules 'to_qq'.*did you mean 'to_q'"):
        add_lora(networks, LoraSettings(target_modules=("to_k", "to_qq")), seed=0)
    with pytest.raises(UserError, match="matches no layer of the text_encoder"):
        add_lora(networks, LoraSettings(target_modules=("to_q",), text_encoder=True), seed=0)
    with pytest.raises(UserError, match="target_modules = 'atention': choose attention, "):
        validate(LoraSettings, {"target_modules": "atention"})
    networks = networks_of(make_sd1(tmp_path))
    add_lora(networks, LoraSettings(rank=2), seed=0)
    weights = lora_weights(networks)
    with pytest.raises(
        UserError, match=r"LoRA tensor unet\..*attn2.to_k.lora_A.weight is \[2, 32\], .* \[2, 48\]"
    ):
        apply_lora(networks_of(make_sd2(tmp_path)), weights)
    odd = LoraWeights(weights.tensors, {"unet": {**weights.configs["unet"], "loftq_config": {}}})
    with pytest.raises(UserError, match="unknown key in the LoRA's configuration 'loftq_config'"):
        apply_lora(networks_of(make_sd1(tmp_path)), odd)


def test_an_infinite_lora_is_not_fused(tmp_path: Path) -> None:
    unet = make_sd1(tmp_path).denoiser.unet
    add_lora({"unet": unet}, LoraSettings(rank=1), seed=0)
    lora_parameters(unet)[-1].data.fill_(torch.inf)
    with pytest.raises(UserError, match=r"the LoRA makes .*to_out.0 infinite or NaN"):
        fuse_lora(unet)


def test_a_samples_dropout_depends_on_nothing_but_the_sample() -> None:
    noise = torch.randn(5, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    layers = nn.ModuleList([KeyedDropout(0.3, "a"), KeyedDropout(0.3, "b")])

    def mask(rows: list[int], layer: int = 0) -> Tensor:
        set_dropout_keys(layers, noise[rows])
        output: Tensor = layers[layer](
            torch.ones(2 * len(rows), 7, 30)
        )  # two chunks of a prompt for each sample
        return output

    whole = mask([0, 1, 2, 3, 4])
    torch.rand(3)
    assert torch.equal(torch.cat([mask([0, 1]), mask([2, 3, 4])]), whole)
    assert torch.equal(mask([3, 0]), torch.cat([whole[6:8], whole[:2]]))
    assert len({tuple(row.flatten().tolist()) for row in torch.cat([whole, mask([0, 1, 2, 3, 4], 1)])}) == 20
    assert whole.unique().tolist() == pytest.approx([0, 1 / 0.7])
    layers.eval()
    assert torch.equal(mask([0]), torch.ones(2, 7, 30))


def test_the_bits_of_dropout_are_uniform() -> None:
    bits = random_bits(torch.tensor([1, 2, -3]), 40_000)
    assert bits.min() >= 0 and bits.max() < 2**53
    share = bits.double() / 2**53
    assert share.mean(dim=1) == pytest.approx(torch.full((3,), 0.5), abs=0.01)
    assert torch.corrcoef(share).triu(1).abs().max() < 0.02
    assert abs(torch.corrcoef(torch.stack([share[0, 1:], share[0, :-1]]))[0, 1]) < 0.02


def test_dropout_is_in_the_lora_while_it_trains(tmp_path: Path) -> None:
    parts = make_sd1(tmp_path)
    add_lora(networks_of(parts), EVERYWHERE.model_copy(update={"dropout": 0.5}), seed=3)
    disturb(networks_of(parts))
    still = predict(parts)
    parts.denoiser.train(), parts.text_encoder.train()
    with pytest.raises(AssertionError, match="set_dropout_keys"):
        predict(parts)
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(4))
    for module in (parts.denoiser, parts.text_encoder):
        set_dropout_keys(module, noise)
    assert torch.equal(predict(parts), predict(parts)) and not torch.allclose(
        predict(parts), still, atol=1e-3
    )

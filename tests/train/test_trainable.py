from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ldm.config import to_yaml, validate
from ldm.errors import UserError
from ldm.models.adapters.folder import find_base
from ldm.models.attention import choose_attention, xformers_fault
from ldm.models.loading.model import ModelParts, load_parts, save_parts
from tests.support.tiny_loras import predict
from tests.support.tiny_models import make_sd1, make_sd2, make_sdxl
from train.loop.optim import make_optimizer, set_learning_rate
from train.run.trainable import (
    TrainableSettings,
    apply_memory_settings,
    check_base,
    choose_trained,
    save_trained,
)
from train.settings.shared import OptimSettings

EMBEDDING = {"token": "<cat>", "initial_word": "apple", "num_vectors": 2}
KINDS: dict[str, dict[str, Any]] = {
    "unet": {},
    "lora": {"lora": {"rank": 2, "text_encoder": True}},
    "text_encoder": {},
    "unet+text_encoder": {},
    "embedding": {"embedding": EMBEDDING},
}


def settings_of(trainable: str, **changes: Any) -> TrainableSettings:
    return validate(TrainableSettings, {"trainable": trainable, **KINDS[trainable], **changes})


def moved(parts: ModelParts, settings: TrainableSettings) -> dict[str, float]:
    """Train for two steps; returns the names of the weights that moved, and how far."""
    groups = choose_trained(parts, settings, seed=0, learning_rate=0.01)
    modules = torch.nn.ModuleDict({"unet": parts.denoiser, "text_encoder": parts.text_encoder})
    before = {name: p.detach().clone() for name, p in modules.named_parameters()}
    module = torch.nn.Module()
    module.parameter_groups = lambda: groups  # type: ignore[assignment]
    optimizer = make_optimizer(module, OptimSettings(learning_rate=0.01, weight_decay=0))
    for _ in range(2):
        predict(parts).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return {
        name: float((p.detach() - before[name]).abs().max())
        for name, p in modules.named_parameters()
        if not torch.equal(p, before[name])
    }


@pytest.mark.parametrize(
    ("make", "trainable"),
    [(make, kind) for make in (make_sd1, make_sdxl) for kind in KINDS],
)
def test_what_is_named_is_trained_and_nothing_else(
    make: Callable[[Path], ModelParts], trainable: str, tmp_path: Path
) -> None:
    parts, settings = make(tmp_path), settings_of(trainable)
    for module in parts.modules().values():
        module.requires_grad_(True)  # as in new networks
    names = set(moved(parts, settings))
    trained = {f"{part}.{name}" for part, module in (("unet", parts.denoiser), ("text_encoder", parts.text_encoder))
               for name, p in module.named_parameters() if p.requires_grad}  # fmt: skip
    expected = {
        "unet": lambda name: name.startswith("unet."),
        "lora": lambda name: ".lora_" in name,
        "text_encoder": lambda name: name.startswith("text_encoder."),
        "unet+text_encoder": lambda name: True,
        "embedding": lambda name: name.endswith(".vectors"),
    }[trainable]
    unread = {id(p) for module in parts.text_encoder.unread_modules() for p in module.parameters()}
    everything = {f"unet.{n}" for n, _ in parts.denoiser.named_parameters()} | {
        f"text_encoder.{n}" for n, p in parts.text_encoder.named_parameters() if id(p) not in unread
    }
    assert not any(p.requires_grad for p in parts.autoencoder.parameters())
    assert trained == {name for name in everything if expected(name)} and names <= trained
    assert len(names) > 0.8 * len(trained) or trainable == "embedding"
    assert settings.trains_text_encoder == any(name.startswith("text_encoder.") for name in trained)


def test_the_text_encoder_has_its_own_learning_rate(tmp_path: Path) -> None:
    settings = settings_of("unet+text_encoder", text_encoder_learning_rate=1e-4)
    groups = choose_trained(make_sd1(tmp_path), settings, seed=0, learning_rate=1e-3)
    optim = OptimSettings(learning_rate=1e-3, weight_decay=0.3)
    module = torch.nn.Module()
    module.parameter_groups = lambda: groups  # type: ignore[assignment]
    optimizer = make_optimizer(module, optim)
    assert [g["name"] for g in optimizer.param_groups] == ["unet", "unet", "text_encoder", "text_encoder"]
    set_learning_rate(optimizer, 0.5)
    assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([0.5, 0.5, 0.05, 0.05])
    assert [g["weight_decay"] for g in optimizer.param_groups] == [0.3, 0, 0.3, 0]
    plain = make_optimizer((p for group in groups for p in group["params"]), optim)
    set_learning_rate(plain, 0.5)
    assert [g["lr"] for g in plain.param_groups] == [0.5, 0.5]


def test_a_new_token_does_not_decay(tmp_path: Path) -> None:
    groups = choose_trained(make_sd1(tmp_path), settings_of("embedding"), seed=0, learning_rate=1e-3)
    module = torch.nn.Module()
    module.parameter_groups = lambda: groups  # type: ignore[assignment]
    assert [
        g["weight_decay"] for g in make_optimizer(module, OptimSettings(weight_decay=0.3)).param_groups
    ] == [0]


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"trainable": "embedding"}, "trainable: embedding needs embedding"),
        ({"embedding": EMBEDDING}, "but trainable is unet: set trainable: embedding, or leave out embedding"),
        (
            {"lora": {"rank": 4}},
            "set trainable: lora, or leave out lora to train the unet",
        ),
        ({"trainable": "lora", "text_encoder_learning_rate": 1e-4}, "but the text encoder is not trained"),
        ({"trainable": "embeding"}, "trainable = 'embeding'"),
    ],
)
def test_contradictions_are_refused(tree: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        validate(TrainableSettings, tree)


@pytest.mark.parametrize("trainable", KINDS)
def test_the_resolved_settings_load_back_equal(trainable: str) -> None:
    import yaml

    settings = settings_of(trainable)
    assert validate(TrainableSettings, yaml.safe_load(to_yaml(settings))) == settings


def gradients(parts: ModelParts) -> dict[str, Tensor]:
    parts.denoiser.train(), parts.text_encoder.train()
    predict(parts).square().mean().backward()
    modules = torch.nn.ModuleDict({"unet": parts.denoiser, "text_encoder": parts.text_encoder})
    return {name: p.grad for name, p in modules.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("trainable", ["lora", "unet+text_encoder"])
def test_gradient_checkpointing_computes_twice_and_the_same(trainable: str, tmp_path: Path) -> None:
    calls, found = [], []
    for checkpointing in (False, True):
        parts = make_sd2(tmp_path)
        settings = settings_of(trainable, gradient_checkpointing=checkpointing, channels_last=checkpointing)
        choose_trained(parts, settings, seed=0, learning_rate=1.0)
        apply_memory_settings(parts, settings, torch.device("cpu"))
        count: list[str] = []
        watched = {
            "unet": parts.denoiser.unet.up_blocks[-1].resnets[-1].conv1,
            "text_encoder": parts.text_encoder.model.encoder.layers[0].mlp.fc1,
        }
        for name, layer in watched.items():
            layer.register_forward_hook(lambda *_, name=name, count=count: count.append(name))
        found.append(gradients(parts))
        calls.append(sorted(count))
    once = ["text_encoder", "unet"]
    assert calls == [once, sorted(once * 2)]
    assert found[0].keys() == found[1].keys() and len(found[0]) > 20
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-3, atol=1e-6)


def test_channels_last_is_the_memory_of_the_unets_kernels(tmp_path: Path) -> None:
    parts = make_sd1(tmp_path)
    apply_memory_settings(parts, settings_of("unet", channels_last=True), torch.device("cpu"))
    weight = parts.denoiser.unet.mid_block.resnets[0].conv1.weight
    assert weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()


def test_xformers_is_used_only_where_it_runs(tmp_path: Path) -> None:
    unet, cpu = make_sd1(tmp_path).denoiser.unet, torch.device("cpu")
    fault = xformers_fault(cpu)
    assert fault  # not installed, or no kernel for the CPU
    with pytest.raises(
        UserError, match=r"attention = 'xformers' does not work here \(.+\): set attention=sdpa"
    ):
        choose_attention(unet, "xformers", cpu)
    before = {type(processor) for processor in unet.attn_processors.values()}
    choose_attention(unet, "sdpa", cpu)
    assert {type(processor) for processor in unet.attn_processors.values()} == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about a machine without CUDA")
def test_eight_bits_are_refused_without_cuda() -> None:
    parameters = [torch.nn.Parameter(torch.zeros(2, 2))]
    with pytest.raises(UserError, match="'adamw_8bit' without a CUDA device: set "):
        make_optimizer(parameters, OptimSettings(), "adamw_8bit")


@pytest.mark.parametrize("trainable", ["unet", "lora", "embedding"])
def test_what_was_trained_is_saved_and_loaded(trainable: str, tmp_path: Path) -> None:
    save_parts(make_sd1(tmp_path), tmp_path / "base")
    base, settings = find_base(tmp_path / "base"), settings_of(trainable)
    parts = load_parts(base.folder)
    moved(parts, settings)
    parts.denoiser.eval(), parts.text_encoder.eval()
    for number in (1, 2):  # the second replaces the first
        save_trained(parts, tmp_path / "run" / "pipeline", settings, base, provenance={"number": number})
    with torch.no_grad():
        torch.testing.assert_close(predict(load_parts(tmp_path / "run" / "pipeline")), predict(parts))
    assert (tmp_path / "run" / "pipeline" / "adapter.json").is_file() == settings.is_adapter


def test_an_adapter_needs_a_base() -> None:
    check_base(settings_of("unet"), None)
    with pytest.raises(UserError, match="trainable = 'lora' without a base model: set base: MODEL"):
        check_base(settings_of("lora"), None)

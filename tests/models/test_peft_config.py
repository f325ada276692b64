"""What peft's configuration says is what peft does; a key or value that is not understood is refused by name."""

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from ldm.errors import LdmWarning, UserError
from ldm.models.adapters.lora import LoraSettings, apply_lora
from ldm.models.adapters.lora_files import read_lora_file
from ldm.models.adapters.lora_layers import to_layers
from tests.support.tiny_loras import as_diffusers, as_kohya, as_peft, networks_of, trained
from tests.support.tiny_models import make_sd1
from train.run.trainable import put_in_lora

ATTENTION = ["to_q", "to_k"]
FULL = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"


@pytest.fixture(scope="module")
def sd1(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The plain networks of a model; no test changes them."""
    return networks_of(make_sd1(tmp_path_factory.mktemp("sd1")))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA in peft's layout, for the UNet."""
    made = tmp_path_factory.mktemp("saved")
    weights = trained(make_sd1(made), LoraSettings(rank=2, alpha=5, target_modules=("to_k", "conv1")))
    return as_peft(weights, made / "peft")


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(saved, tmp_path / "peft"))


def written_by_peft(unet: Any, folder: Path, config: LoraConfig) -> Path:
    """An adapter as peft saves it, with every weight moved as training would."""
    model = get_peft_model(copy.deepcopy(unet), config)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    model.save_pretrained(str(folder / "unet"))
    return folder


@pytest.mark.filterwarnings("ignore")  # of peft
@pytest.mark.parametrize(
    "changes",
    [
        {"alpha_pattern": {"^to_q": 64}},
        {"alpha_pattern": {"to_q": 64, "to_k": 2}},
        {"alpha_pattern": {r".*attn1\.to_(q|k)": 3, "to_q": 9}},
        {"alpha_pattern": {FULL: 7}, "rank_pattern": {FULL: 1}},
        {"rank_pattern": {"^to_q": 5, r"down_blocks.*attn2\.to_q": 1}},
        {"alpha_pattern": {"to_q": 64}, "rank_pattern": {"to_q": 4}, "use_rslora": True},
        {"target_modules": r".*attn1\.to_(q|v)"},
        {"target_modules": [FULL, "conv1"]},
        {"exclude_modules": ["attn1.to_q"]},
        {"exclude_modules": r".*mid_block.*"},
        {"layers_to_transform": [0], "layers_pattern": "transformer_blocks"},
        {"use_dora": True, "alpha_pattern": {"^to_q": 64}},
        {"init_lora_weights": "gaussian"},
        {"init_lora_weights": "pissa"},
        {"init_lora_weights": "olora", "alpha_pattern": {"to_q": 3}},
        {"init_lora_weights": "pissa", "use_rslora": True},
    ],
    ids=str,
)
def test_a_configuration_means_what_it_means_to_peft(
    changes: dict[str, Any], sd1: dict[str, Any], tmp_path: Path
) -> None:
    config = LoraConfig(**{"r": 2, "lora_alpha": 4, "target_modules": ATTENTION, **changes})
    folder = written_by_peft(sd1["unet"], tmp_path, config)
    theirs = PeftModel.from_pretrained(copy.deepcopy(sd1["unet"]), str(folder / "unet")).merge_and_unload()
    changed = {"unet": copy.deepcopy(sd1["unet"])}
    apply_lora(changed, read_lora_file(folder, sd1))
    plain, ours = sd1["unet"].state_dict(), changed["unet"].state_dict()
    moved = 0.0
    for name, weight in theirs.state_dict().items():
        moved = max(moved, float((weight - plain[name]).abs().max()))
        torch.testing.assert_close(ours[name], weight, rtol=1e-5, atol=2e-6, msg=name)
    assert moved > 1e-3


def change(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"bias": "all"}, "bias is 'all'"),
    ({"lora_bias": True}, "lora_bias is 'True'"),
    ({"modules_to_save": ["conv_in"]}, "modules_to_save is"),
    ({"layer_replication": [[0, 2]]}, "layer_replication is"),
    ({"trainable_token_indices": [3]}, "trainable_token_indices is"),
    ({"target_parameters": ["x"]}, "target_parameters is"),
    ({"use_qalora": True}, "use_qalora is 'True'"),
    ({"use_bdlora": {"nblocks": 2}}, "use_bdlora is"),
    ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens is"),
    ({"of_a_later_version": 3}, "of_a_later_version is '3': this key is not supported"),
    ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights is 'pissa_niter_4', and the file does not tell"),
    ({"init_lora_weights": "loftq"}, "init_lora_weights is 'loftq'"),
    ({"init_lora_weights": "corda"}, "init_lora_weights is 'corda'"),
    ({"init_lora_weights": "lora_ga"}, "init_lora_weights is 'lora_ga'"),
    ({"init_lora_weights": "pissa", "use_dora": True}, "use_dora with init_lora_weights 'pissa'"),
    ({"peft_type": "LOHA"}, "is of peft's type LOHA"),
    ({"r": 4}, "has rank 2, and its configuration 4"),
    ({"use_dora": True}, "has no magnitudes, and use_dora is True"),
    ({"lora_alpha": "x"}, "lora_alpha is 'x': it must be a number"),
    ({"r": "2"}, "r is '2': it must be a positive whole number"),
    ({"alpha_pattern": {"to_q": "x"}}, "alpha_pattern is .*: it must be an object of numbers"),
    ({"alpha_pattern": {"(": 3}}, r"alpha_pattern '\(' is not a regular expression"),
    ({"layers_to_transform": 1, "layers_pattern": "(a+)+"}, "layers_pattern is"),
    ({"target_modules": 3}, "target_modules is '3': it must be a name"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "message"), REFUSED, ids=[str(each) for each, _ in REFUSED])
def test_what_is_not_understood_is_refused_by_name(
    changes: dict[str, Any], message: str, sd1: dict[str, Any], folder: Path
) -> None:
    change(folder / "unet" / "adapter_config.json", **changes)
    with pytest.raises(UserError, match=message):
        read_lora_file(folder, sd1)


def test_what_is_switched_off_or_without_effect_is_read(sd1: dict[str, Any], folder: Path) -> None:
    expected = read_lora_file(folder, sd1)
    change(
        folder / "unet" / "adapter_config.json",
        of_a_later_version=False, another={}, bias="none", modules_to_save=[], megatron_core="megatron.core",
        lora_dropout=0.1, init_lora_weights="eva", eva_config={"rho": 2.0}, fan_in_fan_out=True, revision="main",
    )  # fmt: skip
    again = read_lora_file(folder, sd1)
    assert again.configs == expected.configs and again.tensors.keys() == expected.tensors.keys()


def test_layers_that_peft_would_leave_out_are_left_out_with_a_warning(
    sd1: dict[str, Any], folder: Path
) -> None:
    change(folder / "unet" / "adapter_config.json", target_modules=["conv1"])
    with pytest.warns(
        LdmWarning, match=r"\d+ layers that its configuration leaves out, such as unet\..*to_k"
    ):
        layers = to_layers(read_lora_file(folder, sd1))["unet"]
    assert layers and all(name.endswith("conv1") for name in layers)
    change(folder / "unet" / "adapter_config.json", target_modules=["conv1", "to_k", "to_q"])
    with pytest.warns(LdmWarning, match=r"names, and the file does not hold, such as unet\..*to_q"):
        read_lora_file(folder, sd1)


def test_the_configuration_in_a_header_is_read_as_strictly(sd1: dict[str, Any], tmp_path: Path) -> None:
    weights = trained(make_sd1(tmp_path), LoraSettings(rank=2, alpha=5, target_modules=("to_k",)))
    file = as_diffusers(weights, tmp_path / "diffusers")
    config = {f"unet.{key}": value for key, value in weights.configs["unet"].items()}
    for more, message in (
        ({"unet.init_lora_weights": "loftq"}, "init_lora_weights is 'loftq'"),
        ({"unet.lora_bias": True}, "of 'unet': lora_bias is 'True'"),
        ({"unet.r": 3}, "has rank 2, and its configuration 3"),
    ):
        save_file(load_file(file), file, {"lora_adapter_metadata": json.dumps({**config, **more})})
        with pytest.raises(UserError, match=message):
            read_lora_file(file, sd1)
    with pytest.raises(UserError, match="has rank 2"):  # to continue from it in training
        put_in_lora(dict(sd1), LoraSettings(start=file), seed=1)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"initialize": "pissa"}, "initialize = 'pissa' in its ss_network_args: this argument"),
        ({"unheard_of": "3"}, "unheard_of = '3'"),
        ({"algo": "lora", "conv_dim": "4", "rs_lora": "True", "unheard_of": "False", "initialize": "True"}, ""),
        ("[", "ss_network_args in its header is broken"),
    ],
)  # fmt: skip
def test_the_arguments_in_a_header_of_kohya(
    args: Any, message: str, sd1: dict[str, Any], tmp_path: Path
) -> None:
    weights = trained(make_sd1(tmp_path), LoraSettings(rank=2, target_modules=("to_k",)))
    text = args if isinstance(args, str) else json.dumps(args)
    file = as_kohya(weights, tmp_path, metadata={"ss_network_args": text})
    if not message:
        assert read_lora_file(file, sd1).configs == weights.configs
        return
    with pytest.raises(UserError, match=message):
        read_lora_file(file, sd1)

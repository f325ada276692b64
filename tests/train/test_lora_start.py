"""Training that starts from a LoRA file."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from ldm.config import to_yaml, validate
from ldm.errors import UserError
from ldm.models.adapters.folder import find_base, read_adapter
from ldm.models.adapters.lora import LoraSettings, LoraWeights, lora_parameters, lora_weights
from ldm.models.adapters.lora_files import read_lora
from ldm.models.dropout import KeyedDropout
from ldm.models.loading.model import load_parts, save_parts
from tests.support.tiny_loras import (
    FORMATS,
    as_diffusers,
    as_kohya,
    assert_same,
    networks_of,
    predict,
    trained,
)
from tests.support.tiny_models import make_sd1
from train.run.trainable import TrainableSettings, choose_trained, save_trained

SETTINGS = LoraSettings(rank=2, alpha=5, target_modules=("to_q", "conv1", "fc1"), text_encoder=True)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> LoraWeights:
    return trained(make_sd1(tmp_path_factory.mktemp("lora")), SETTINGS)


def going_on_from(file: Path, **lora: Any) -> TrainableSettings:
    lora = {"text_encoder": True, "start": str(file), **lora}
    return validate(TrainableSettings, {"trainable": "lora", "lora": lora})


@pytest.mark.parametrize("format", FORMATS)
def test_the_first_step_is_where_the_file_ended(format: str, weights: LoraWeights, tmp_path: Path) -> None:
    file = FORMATS[format](weights, tmp_path / "lora")
    live, parts = make_sd1(tmp_path), make_sd1(tmp_path)
    trained(live, SETTINGS)
    groups = choose_trained(parts, going_on_from(file), seed=0, learning_rate=1e-3)
    assert [group["name"] for group in groups] == ["unet", "text_encoder"]
    assert torch.equal(predict(parts), predict(live))
    assert_same(lora_weights(networks_of(parts)), weights)
    for network in networks_of(parts).values():
        assert {id(p) for p in network.parameters() if p.requires_grad} == {
            id(p) for p in lora_parameters(network)
        }


def test_what_is_saved_says_its_own_size_and_no_path(weights: LoraWeights, tmp_path: Path) -> None:
    save_parts(make_sd1(tmp_path), tmp_path / "base")
    base, file = find_base(tmp_path / "base"), as_kohya(weights, tmp_path / "somewhere")
    settings, parts = going_on_from(file), load_parts(base.folder)
    choose_trained(parts, settings, seed=0, learning_rate=1e-3)
    save_trained(parts, tmp_path / "pipeline", settings, base)
    said = read_adapter(tmp_path / "pipeline").settings
    assert (said["rank"], said["alpha"], said["target_modules"]) == (2, 5, ["conv1", "fc1", "to_q"])
    assert said["start"] is None and "somewhere" not in (tmp_path / "pipeline" / "adapter.json").read_text()
    assert_same(read_lora(tmp_path / "pipeline" / "pytorch_lora_weights.safetensors"), weights)
    with torch.no_grad():
        torch.testing.assert_close(predict(load_parts(tmp_path / "pipeline")), predict(parts))


def test_dropout_is_the_settings_own(weights: LoraWeights, tmp_path: Path) -> None:
    parts = make_sd1(tmp_path)
    settings = going_on_from(as_kohya(weights, tmp_path), dropout=0.25)
    choose_trained(parts, settings, seed=0, learning_rate=1e-3)
    found = [module for module in parts.denoiser.modules() if isinstance(module, KeyedDropout)]
    assert found and {module.share for module in found} == {0.25}


def test_settings_that_contradict_the_file_are_refused(weights: LoraWeights, tmp_path: Path) -> None:
    file = as_diffusers(weights, tmp_path)
    for key, value in {"rank": 4, "alpha": 2, "target_modules": "all", "use_dora": True}.items():
        with pytest.raises(
            UserError, match=f"{key} is given, but the LoRA of start has its own: leave it out"
        ):
            going_on_from(file, **{key: value})
    with pytest.raises(UserError, match=r"changes the text encoder: set lora.text_encoder: true"):
        choose_trained(make_sd1(tmp_path), going_on_from(file, text_encoder=False), seed=0, learning_rate=1)
    unet_only = trained(
        make_sd1(tmp_path), SETTINGS.model_copy(update={"text_encoder": False, "target_modules": ("to_q",)})
    )
    as_diffusers(unet_only, tmp_path)
    with pytest.raises(UserError, match=r"does not change the text encoder: set lora.text_encoder: false"):
        choose_trained(make_sd1(tmp_path), going_on_from(file), seed=0, learning_rate=1)
    settings = going_on_from(file)
    assert validate(TrainableSettings, yaml.safe_load(to_yaml(settings))) == settings

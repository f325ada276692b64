"""What a single file does not hold: what it predicts, from a configuration beside it; and networks from elsewhere."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ldm.errors import LdmWarning, UserError
from ldm.export.formats.single_file import write_single_file
from ldm.models.loading.model import Substitutes, load_model, load_parts, save_parts
from ldm.models.loading.original_file import load_single_file
from ldm.models.loading.sidecar import read_sidecar
from ldm.models.loading.vae_file import load_autoencoder
from ldm.models.parts import ModelParts
from tests.support.tiny_single_file import make_narrow_sd1, make_narrow_sd2

VAE, CLIP = "first_stage_model.", "cond_stage_model."


@pytest.fixture(scope="module")
def sd1() -> ModelParts:
    return make_narrow_sd1()


@pytest.fixture(scope="module")
def tensors(sd1: ModelParts, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """A file of Stable Diffusion 1, which does not say what it predicts."""
    path = tmp_path_factory.mktemp("single") / "m.safetensors"
    write_single_file(sd1, path, dtype=torch.float32, metadata={})
    return load_file(path)


def same(one: Any, other: Any) -> bool:
    theirs = other.state_dict()
    return all(torch.equal(tensor, theirs[name]) for name, tensor in one.state_dict().items())


def beside(folder: Path, text: str) -> Path:
    (folder / "m.yaml").write_text(text)
    return folder / "m.safetensors"


def test_a_configuration_beside_the_file_says_what_it_predicts(
    tensors: dict[str, Tensor], tmp_path: Path
) -> None:
    path = tmp_path / "m.safetensors"
    save_file(tensors, path)
    with pytest.warns(
        LdmWarning, match="m.safetensors does not say what it predicts; as usual, it is taken for eps"
    ):
        assert load_parts(path).scheduler_config["prediction_type"] == "epsilon"
    beside(tmp_path, "model: {params: {parameterization: v, linear_start: 0.001, timesteps: 500}}")
    config = load_parts(path).scheduler_config
    assert (config["prediction_type"], config["beta_start"], config["num_train_timesteps"]) == (
        "v_prediction",
        0.001,
        500,
    )
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        chosen = load_model(path, substitutes=Substitutes(prediction_type="epsilon"))
    assert chosen.parts.scheduler_config["prediction_type"] == "epsilon" and not said
    save_file(tensors, path, {"modelspec.prediction_type": "epsilon"})
    with pytest.warns(LdmWarning, match="predicts epsilon, and m.yaml v_prediction: epsilon is used"):
        load_parts(path)


def test_what_a_configuration_may_say(tmp_path: Path) -> None:
    params = "{parameterization: eps, beta_schedule: sqrt_linear, linear_end: 0.02, scale_factor: 0.13}"
    found = read_sidecar(beside(tmp_path, f"model: {{params: {params}}}"))
    assert found is not None and (found.prediction_type, found.scaling_factor) == ("epsilon", 0.13)
    assert found.schedule == {"beta_schedule": "linear", "beta_end": 0.02}
    for text in ("program: denoiser", "- 1", "", "model: emoji", "model: {params: 3}"):
        assert read_sidecar(beside(tmp_path, text)) is None
    for text in ("{", "a: " + "[" * 5000, "x" * 2**21):
        with pytest.warns(LdmWarning, match="m.yaml is not read"):
            assert read_sidecar(beside(tmp_path, text)) is None
    for params, message in (
        ("{parameterization: w}", "parameterization is 'w': it must be one of eps, v, x0"),
        ("{parameterization: [v]}", "parameterization is"),
        ("{linear_start: x}", "linear_start is 'x': it must be a positive number"),
        ("{scale_factor: .nan}", "scale_factor is 'nan'"),
    ):
        with pytest.raises(UserError, match=message):
            read_sidecar(beside(tmp_path, f"model: {{params: {params}}}"))
    text = "{target: ldm.modules.encoders.modules.FrozenCLIPEmbedder, params: {layer: penultimate}}"
    with pytest.warns(LdmWarning, match="layer 'penultimate' is not read, but the last one"):
        read_sidecar(beside(tmp_path, f"model: {{params: {{cond_stage_config: {text}}}}}"))


@pytest.mark.filterwarnings("ignore:.*does not say what it predicts")
@pytest.mark.parametrize(
    ("prefix", "message"),
    [
        (VAE, "m.safetensors holds no autoencoder: add --vae FOLDER|FILE, or --base MODEL"),
        (CLIP, "m.safetensors holds no text encoder: add --base MODEL to take it from another"),
    ],
)
def test_a_missing_network_is_named_and_taken_from_elsewhere(
    prefix: str, message: str, sd1: ModelParts, tensors: dict[str, Tensor], tmp_path: Path
) -> None:
    path, base = tmp_path / "m.safetensors", tmp_path / "base.safetensors"
    save_file({name: tensor for name, tensor in tensors.items() if not name.startswith(prefix)}, path)
    save_file(tensors, base)
    with pytest.raises(UserError, match=message):
        load_parts(path)
    loaded = load_model(path, substitutes=Substitutes(base=base))
    for name, network in sd1.networks().items():
        assert same(network, loaded.parts.networks()[name])
    assert Substitutes(base=base).hash("x") != Substitutes().hash("x") == "x"


@pytest.mark.filterwarnings("ignore:.*does not say what it predicts")
def test_a_unet_alone_is_of_the_family_of_its_base(tmp_path: Path) -> None:
    sd2, path = make_narrow_sd2(), tmp_path / "m.safetensors"
    write_single_file(sd2, path, dtype=torch.float32, metadata={})
    unet = {name: t for name, t in load_file(path).items() if name.startswith(("model.", "v_pred"))}
    save_file(unet, path)
    loaded = load_single_file(path, base=sd2)
    assert loaded.family.name == "sd2" and loaded.scheduler_config["prediction_type"] == "v_prediction"
    assert same(sd2.denoiser.unet, loaded.denoiser.unet)


@pytest.mark.filterwarnings("ignore:.*does not say what it predicts")
def test_an_autoencoder_is_read_from_a_folder_or_a_file(
    sd1: ModelParts, tensors: dict[str, Tensor], tmp_path: Path
) -> None:
    save_parts(sd1, tmp_path / "model")
    whole = {name: tensor for name, tensor in tensors.items() if name.startswith(VAE)}
    save_file(whole, tmp_path / "whole.safetensors")
    save_file(
        {n.removeprefix(VAE): t for n, t in whole.items()} | {"loss.x": torch.ones(1)},
        tmp_path / "bare.safetensors",
    )
    inside = tmp_path / "model" / "vae"
    places = [tmp_path / "model", inside, *inside.glob("*.safetensors")]
    for place in [*places, tmp_path / "whole.safetensors", tmp_path / "bare.safetensors"]:
        assert same(sd1.autoencoder.vae, load_autoencoder(place)), place
    with pytest.raises(UserError, match=r"whole\.safetensors holds an autoencoder alone: give it with --vae"):
        load_parts(tmp_path / "whole.safetensors")
    save_file({"x": torch.ones(1)}, tmp_path / "other.safetensors")
    for place, message in (
        ("other.safetensors", "holds no autoencoder of Stable Diffusion"),
        ("gone", "no autoencoder '.*gone'"),
        (".", "has no diffusion_pytorch_model.safetensors"),
    ):
        with pytest.raises(UserError, match=message):
            load_autoencoder(tmp_path / place)
    moved = {name: tensor + 0.01 for name, tensor in whole.items()}
    save_file(moved, tmp_path / "moved.safetensors")
    save_file(tensors, tmp_path / "m.safetensors")
    for model in ("model", "m.safetensors"):
        changed = load_model(
            tmp_path / model, substitutes=Substitutes(vae=tmp_path / "moved.safetensors")
        ).parts
        assert same(changed.autoencoder.vae, load_autoencoder(tmp_path / "moved.safetensors"))
        assert not same(changed.autoencoder.vae, sd1.autoencoder.vae)
    with pytest.raises(UserError, match="is a complete model: leave --base out"):
        load_model(tmp_path / "model", substitutes=Substitutes(base=tmp_path / "m.safetensors"))

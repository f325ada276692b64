"""A tiny SDXL and its LoRAs: exported, read by stock pipelines, and read back; single files both ways."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import ldm.export.verify.compare
from ldm.errors import UserError
from ldm.export.artefact import export
from ldm.export.export_options import ExportOptions
from ldm.export.export_source import load_source
from ldm.export.formats.single_file import modelspec_metadata, write_single_file
from ldm.export.verify import readers
from ldm.io.safetensors_header import read_header
from ldm.models.adapters.folder import Adapter, find_base, save_adapter
from ldm.models.adapters.lora import LoraSettings, LoraWeights
from ldm.models.adapters.lora_files import read_lora_file, write_lora_kohya
from ldm.models.loading.model import ModelParts, load_model, load_parts, save_parts
from tests.support.tiny_loras import predict, trained
from tests.support.tiny_models import make_sdxl
from tests.support.tiny_single_file import make_narrow_sdxl

# peft asks the text encoders in a way that transformers has renamed
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

QUIET = ExportOptions(num_samples=0)
SETTINGS = LoraSettings(rank=2, alpha=3, target_modules="all", text_encoder=True)


@pytest.fixture(autouse=True)
def read_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reader runs in this process, which has diffusers loaded already."""
    monkeypatch.setattr(ldm.export.verify.compare, "_run", lambda task, _: readers.main([str(task)]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("sdxl")
    save_parts(make_sdxl(made / "tokenizers"), made / "m")
    return made / "m"


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> tuple[ModelParts, Path]:
    """A model with SDXL's structure, as a folder and as a single file beside it."""
    made, parts = tmp_path_factory.mktemp("narrow"), make_narrow_sdxl()
    save_parts(parts, made / "m")
    metadata = modelspec_metadata(parts, title="narrow")
    assert metadata["modelspec.architecture"] == "stable-diffusion-xl-v1-base"
    write_single_file(parts, made / "m.safetensors", dtype=torch.float32, metadata=metadata)
    return parts, made


def with_lora(base_folder: Path, folder: Path) -> Path:
    """A LoRA on all three networks of a model, stored as a run stores it."""
    parts = load_parts(base_folder)
    base = find_base(str(base_folder), parts)
    stored = Adapter(
        kind="lora",
        base=base.given,
        base_weights_hash=base.weights_hash,
        scheduler_config=parts.scheduler_config,
        settings={},
        base_parts=dict(base.parts),
    )
    save_adapter(folder, stored, trained(parts, SETTINGS), parts.defaults)
    return folder


@pytest.fixture(scope="module")
def adapter(folder: Path) -> Path:
    return with_lora(folder, folder.parent / "adapter")


@pytest.fixture(scope="module")
def networks(folder: Path) -> ModelParts:
    """The model without a LoRA; no test changes it."""
    return load_parts(folder)


@pytest.fixture(scope="module")
def predicted(adapter: Path) -> Tensor:
    """What the model with the LoRA predicts."""
    return predict(load_parts(adapter))


def assert_same_tensors(one: LoraWeights, other: LoraWeights) -> None:
    """Equal bit by bit; our own files leave `text_model.` out, which the second text encoder's layers have."""
    first, second = (
        {name.replace(".text_model.", "."): tensor for name, tensor in each.tensors.items()}
        for each in (one, other)
    )
    assert first.keys() == second.keys()
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


@pytest.mark.parametrize(("dtype", "variant"), [("float32", False), ("float16", True)])
def test_the_stock_pipeline_draws_the_same_image(
    folder: Path, tmp_path: Path, dtype: str, variant: bool
) -> None:
    options = replace(QUIET, dtype=dtype, variant=variant)
    (verdict,) = export(load_source(folder), tmp_path / "out", options).verdicts
    assert verdict.largest_difference < 0.01
    card = (tmp_path / "out/README.md").read_text()
    assert "StableDiffusionXLPipeline" in card


def test_a_single_file_comes_back_complete_and_is_read_by_diffusers(
    narrow: tuple[ModelParts, Path], tmp_path: Path
) -> None:
    parts, made = narrow
    names = load_file(made / "m.safetensors")
    for name in (
        "model.diffusion_model.label_emb.0.0.weight",
        "model.diffusion_model.input_blocks.7.1.transformer_blocks.1.attn2.to_k.weight",
        "conditioner.embedders.0.transformer.text_model.final_layer_norm.bias",
        "conditioner.embedders.1.model.transformer.resblocks.0.attn.in_proj_weight",
        "conditioner.embedders.1.model.text_projection",
    ):
        assert name in names
    back = load_parts(made / "m.safetensors")
    assert back.family.name == "sdxl" and back.autoencoder.scaling_factor == 0.13025
    for name, network in parts.networks().items():
        read = back.networks()[name].state_dict()
        assert read.keys() == network.state_dict().keys()
        assert all(torch.equal(tensor, read[key]) for key, tensor in network.state_dict().items()), name
    torch.testing.assert_close(predict(back), predict(parts))
    (verdict,) = export(
        load_source(made / "m"), tmp_path / "out", replace(QUIET, format="single-file")
    ).verdicts
    assert verdict.largest_difference < 0.01


def test_what_a_single_file_predicts_is_read_or_asked_for(
    narrow: tuple[ModelParts, Path], tmp_path: Path
) -> None:
    tensors, path = load_file(narrow[1] / "m.safetensors"), tmp_path / "m.safetensors"
    save_file(tensors, path)
    with pytest.raises(UserError, match=r"does not say what it predicts.*--prediction-type epsilon"):
        load_parts(path)
    save_file(tensors, path, {"modelspec.prediction_type": "flow"})
    with pytest.raises(UserError, match="says that it predicts 'flow', which is not supported"):
        load_parts(path)
    save_file({**tensors, "v_pred": torch.empty(0), "ztsnr": torch.empty(0)}, path)
    config = load_parts(path).scheduler_config
    assert config["prediction_type"] == "v_prediction" and config["rescale_betas_zero_snr"]


@pytest.mark.parametrize("form", ["lora-diffusers", "lora-peft", "lora-kohya"])
def test_a_lora_leaves_in_each_naming_and_is_read_back(
    folder: Path, adapter: Path, networks: ModelParts, predicted: Tensor, tmp_path: Path, form: str
) -> None:
    """On both text encoders and the UNet; the stock pipeline reads it as we do."""
    source = load_source(adapter)
    (verdict,) = export(source, tmp_path / "out", replace(QUIET, format=form)).verdicts
    assert verdict.largest_difference < 0.01
    assert source.lora is not None
    file = tmp_path / "out"
    if form == "lora-kohya":
        file = next(file.glob("*.safetensors"))
        assert {name.split("_")[1] for name in load_file(file)} == {"unet", "te1", "te2"}
    assert_same_tensors(read_lora_file(file, networks.lora_networks(), networks.family.lora), source.lora)
    changed = predict(load_model(folder, loras=[(file, 1.0)]).parts)
    torch.testing.assert_close(changed, predicted, rtol=1e-4, atol=1e-4)
    assert (changed - predict(networks)).abs().max() > 1e-3


@pytest.mark.slow
def test_kohyas_names_are_those_of_single_files(narrow: tuple[ModelParts, Path], tmp_path: Path) -> None:
    """For a UNet that other programs know. Names from diffusers' layers with kohya's prefix are read as well."""
    parts, made = narrow
    source = load_source(with_lora(made / "m", made / "adapter"))
    (verdict,) = export(source, tmp_path / "out", replace(QUIET, format="lora-kohya")).verdicts
    assert verdict.largest_difference < 0.01
    assert source.lora is not None
    file = next((tmp_path / "out").glob("*.safetensors"))
    assert any(name.startswith("lora_unet_input_blocks_4_1_proj_in.") for name in load_file(file))
    assert read_header(file).metadata["ss_base_model_version"] == "sdxl_base_v1-0"
    names = {part: replace(each, kohya_is_original=False) for part, each in parts.family.lora.items()}
    write_lora_kohya(source.lora, tmp_path / "other.safetensors", lora=names)
    assert any(n.startswith("lora_unet_down_blocks_1_") for n in load_file(tmp_path / "other.safetensors"))
    for each in (file, tmp_path / "other.safetensors"):
        read = read_lora_file(each, parts.lora_networks(), parts.family.lora)
        assert_same_tensors(read, source.lora)

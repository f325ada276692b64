"""Models that enlarge: exported and verified by diffusers' upscale pipeline, which overwrites the scaling factor."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import ldm.export.verify.compare
import ldm.models.loading.model
from ldm.errors import UserError
from ldm.export.artefact import export
from ldm.export.export_options import ExportOptions
from ldm.export.export_source import load_source
from ldm.export.verify import readers
from ldm.export.verify.check import check
from ldm.export.verify.trial import differences, trial_for, trial_inputs, trial_outputs
from ldm.io.files import write_tensors
from ldm.io.json_files import read_json
from ldm.models.loading.model import ModelParts, load_parts, save_parts
from tests.support.tiny_tasks import make_labelled

QUIET = ExportOptions(num_samples=0)


@pytest.fixture(autouse=True)
def read_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reader runs in this process, which has diffusers loaded already."""
    monkeypatch.setattr(ldm.export.verify.compare, "_run", lambda task, _: readers.main([str(task)]))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> ModelParts:
    """As after training: the scaling factor is not yet the stock pipeline's."""
    return make_labelled(tmp_path_factory.mktemp("tokenizer"), "upscale", num_levels=3)


@pytest.fixture(scope="module")
def model(made: ModelParts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "upscale"
    save_parts(made, folder)
    return folder


def test_the_stock_pipeline_enlarges_as_we_do(model: Path, tmp_path: Path) -> None:
    (verdict,) = export(load_source(model), tmp_path / "out", ExportOptions(num_samples=1)).verdicts
    assert verdict.largest_difference < 0.01
    assert read_json(tmp_path / "out/model_index.json")["_class_name"] == "StableDiffusionUpscalePipeline"
    assert check(tmp_path / "out").largest_difference < 0.01
    card = (tmp_path / "out/README.md").read_text()
    assert "that enlarges an image" in card and "super-resolution" in card
    assert "ldm generate 'a red apple' --model out --image photo.png\n" in card
    assert 'photo = load_image("photo.png").resize((4, 4))' in card


def of_stock(made: ModelParts, folder: Path) -> dict[str, Tensor]:
    """What the stock pipeline makes of a saved model, on the trial's inputs."""
    trial = trial_for(made)
    write_tensors(folder / "inputs", trial_inputs(made, trial))
    pipe = readers.read_folder({"folder": folder / "model"})
    task: dict[str, Any] = {"trial": asdict(trial), "inputs": folder / "inputs"}
    return readers.trial_outputs(pipe, task)


def test_a_reloaded_export_enlarges_as_the_model_did_before_it_was_saved(
    made: ModelParts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = trial_outputs(made, trial_for(made))
    save_parts(made, tmp_path / "model")
    assert differences(ours, of_stock(made, tmp_path))["pixels"] < 0.01
    assert (
        differences(ours, trial_outputs(again := load_parts(tmp_path / "model"), trial_for(again)))["pixels"]
        < 0.01
    )
    monkeypatch.setattr(ldm.models.loading.model, "_stored_networks", lambda parts: parts.networks())
    save_parts(made, tmp_path / "model", replace=True)  # the trap: the factor is not folded into the weights
    with pytest.warns(FutureWarning, match="`scaling_factor` or it is set to 0.3"):
        assert differences(ours, of_stock(made, tmp_path))["pixels"] > 5


@pytest.mark.parametrize(
    "weight", ["vae.post_quant_conv.weight", "unet.conv_in.weight", "unet.class_embedding.weight"]
)
def test_one_changed_weight_fails_the_export(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weight: str
) -> None:
    def broken(task: dict[str, str]) -> object:
        pipe = readers.read_folder(task)
        network, _, name = weight.partition(".")
        with torch.no_grad():
            getattr(pipe, network).get_parameter(name)[:, -1] += 3
        return pipe

    monkeypatch.setitem(readers.READERS, "diffusers", ("diffusers", broken))
    with pytest.raises(UserError, match="diffusers reads"):
        export(load_source(model), tmp_path / "out", QUIET)
    assert not (tmp_path / "out").exists()


def test_the_low_resolution_noise_is_part_of_the_trial(model: Path) -> None:
    """Another generator, as the stock pipeline would have by default, gives another image."""
    parts = load_parts(model)
    trial = trial_for(parts)
    assert (trial.factor, trial.noise_level) == (4, 20)
    assert trial_inputs(parts, trial)["given_image"].shape[-1] * 4 == trial.width
    parts.low_resolution = parts.low_resolution.model_copy(update={"max_noise_level": 5})
    assert trial_for(parts).noise_level == 5
    parts.scheduler_config = {**parts.scheduler_config, "_class_name": "EulerAncestralDiscreteScheduler"}
    assert trial_for(parts).scheduler_class == "DDIMScheduler"

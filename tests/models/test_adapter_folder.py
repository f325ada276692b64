import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor
from typer.testing import CliRunner

from ldm.cli.app import app
from ldm.errors import UserError
from ldm.io.files import read_tensors
from ldm.models.adapters.embedding import EmbeddingSettings, add_embedding, embedding_vectors
from ldm.models.adapters.folder import LORA_FILE, Adapter, find_base, read_adapter, save_adapter
from ldm.models.adapters.lora import LoraSettings, LoraWeights, add_lora, lora_weights
from ldm.models.adapters.lora_files import read_lora
from ldm.models.loading.folder import weights_hash
from ldm.models.loading.model import ModelParts, load_parts, save_parts
from ldm.models.loading.source import find_model
from ldm.pipeline.pipeline import Pipeline, load_pipeline
from tests.support.tiny_loras import disturb, networks_of
from tests.support.tiny_models import make_sd1, make_sd2

SETTINGS = LoraSettings(rank=3, alpha=7, target_modules=("to_k", "conv1", "fc1"), text_encoder=True)


def load(model: Path) -> ModelParts:
    return load_parts(find_model(model)[0])


def latents(pipeline: Pipeline, prompt: str = "a red apple") -> Tensor:
    return pipeline.generate(prompt, seed=1, num_inference_steps=2).latents


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def save(parts: ModelParts, folder: Path, base: Path | str, kind: str, settings: Any, weights: Any) -> Path:
    found = find_base(base)
    adapter = Adapter(
        kind, found.given, found.weights_hash, parts.scheduler_config, settings.model_dump(mode="json")
    )
    save_adapter(folder, adapter, weights, parts.defaults)
    return folder


def trained_lora(base: Path, folder: Path, given: str = "", **changes: Any) -> ModelParts:
    """A LoRA on the model at `base`, saved at `folder`; returns the live model."""
    parts, settings = load(base), SETTINGS.model_copy(update=changes)
    add_lora(networks_of(parts), settings, seed=0)
    disturb(networks_of(parts))
    save(parts, folder, given or base, "lora", settings, lora_weights(networks_of(parts)))
    return parts


def test_a_lora_is_stored_in_half_precision_if_it_should_be(tmp_path: Path) -> None:
    save_parts(make_sd2(tmp_path), tmp_path / "base")
    parts = trained_lora(tmp_path / "base", tmp_path / "lora")
    adapter, weights = read_adapter(tmp_path / "lora"), read_lora(tmp_path / "lora" / LORA_FILE)
    save_adapter(tmp_path / "half", adapter, weights, parts.defaults, dtype=torch.float16)
    stored = read_tensors(tmp_path / "half" / LORA_FILE)
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
    found = read_lora(tmp_path / "half" / LORA_FILE).tensors
    assert found.keys() == weights.tensors.keys()
    assert all(torch.equal(found[name].float(), t.half().float()) for name, t in weights.tensors.items())


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A folder of runs, in which `base` is one."""
    save_parts(make_sd2(tmp_path), tmp_path / "runs" / "base" / "pipeline")
    return tmp_path / "runs"


def test_a_lora_run_generates_what_the_trained_model_did(runs: Path) -> None:
    live = trained_lora(runs / "base", runs / "lora" / "pipeline")
    pipeline, plain = load_pipeline(runs / "lora"), load_pipeline(runs / "base")
    assert pipeline.model_id == "lora" and pipeline.defaults == live.defaults
    torch.testing.assert_close(latents(pipeline), latents(Pipeline(live)), rtol=1e-4, atol=1e-4)
    assert (latents(pipeline) - latents(plain)).abs().max() > 0.1
    assert pipeline.weights_hash != plain.weights_hash
    half = load_pipeline(runs / "lora", dtype="bfloat16").denoiser
    fused = pipeline.denoiser.state_dict()
    assert all(torch.equal(t, fused[name].bfloat16()) for name, t in half.state_dict().items())
    pipeline.save(runs / "whole")  # a fused LoRA is a plain model
    assert torch.equal(latents(load_pipeline(runs / "whole")), latents(pipeline))


@pytest.mark.parametrize("use_dora", [False, True])
def test_diffusers_reads_the_lora(use_dora: bool, runs: Path, tmp_path: Path) -> None:
    live = trained_lora(runs / "base", runs / "lora", use_dora=use_dora)
    pipe = StableDiffusionPipeline.from_pretrained(runs / "base" / "pipeline", safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    pipe.load_lora_weights(runs / "lora")
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    prompts = ["a red apple", "a small green circle"]
    with torch.no_grad():
        theirs, _ = pipe.encode_prompt(prompts, torch.device("cpu"), 1, False)
        ours = live.text_encoder(prompts)
        torch.testing.assert_close(theirs, ours.prompt_embeds, rtol=1e-5, atol=1e-5)
        output = pipe.unet(noise, torch.tensor([10, 700]), theirs).sample
        torch.testing.assert_close(output, live.denoiser(noise, torch.tensor([10, 700]), ours))


def test_a_new_token_is_loaded_and_serves_as_base_of_a_lora(runs: Path) -> None:
    settings = EmbeddingSettings(token="<Cat>", initial_word="apple", num_vectors=2)
    live = load(runs / "base")
    add_embedding(live.text_encoder, settings)
    (vectors,) = embedding_vectors(live.text_encoder)
    vectors.data += torch.randn(vectors.shape, generator=torch.Generator().manual_seed(0))
    save(live, runs / "token" / "pipeline", runs / "base", "embedding", settings, {"<Cat>": vectors})
    loaded = load_pipeline(runs / "token")
    assert torch.equal(latents(loaded, "a <cat>"), latents(Pipeline(live), "a <cat>"))
    assert not torch.allclose(latents(loaded, "a <cat>"), latents(loaded, "a apple"), atol=1e-3)
    both = trained_lora(runs / "token", runs / "both")
    torch.testing.assert_close(
        latents(load_pipeline(runs / "both"), "a <cat>"),
        latents(Pipeline(both), "a <cat>"),
        rtol=1e-4,
        atol=1e-4,
    )


def test_a_changed_base_is_refused_by_name(runs: Path) -> None:
    trained_lora(runs / "base", runs / "lora")
    shutil.copytree(runs / "lora", runs / "other")
    edit(runs / "other" / "adapter.json", base_weights_hash="0")
    assert weights_hash(runs / "other") != weights_hash(runs / "lora")  # another base is another model
    save_parts(make_sd1(runs), runs / "base" / "pipeline", replace=True)
    with pytest.raises(
        UserError, match=r"lora: its base '.*base' has other weights now .*: restore that base, or"
    ):
        load_pipeline(runs / "lora")
    shutil.rmtree(runs / "base")
    with pytest.raises(
        UserError, match=r"lora needs its base model '.*base', and no model .*: name a folder"
    ):
        load_pipeline(runs / "lora")


def test_the_base_is_found_after_moving_the_runs(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(runs.parent)
    trained_lora(runs / "base", runs / "lora", given="runs/base")
    runs.rename(runs.parent / "kept")  # above the run, nothing is called runs now
    (runs.parent / "elsewhere").mkdir()
    (runs.parent / "kept").rename(runs.parent / "elsewhere" / "runs")
    load(runs.parent / "elsewhere" / "runs" / "lora")


def test_other_weights_beside_those_that_are_loaded_do_not_matter(runs: Path) -> None:
    folder = runs / "base" / "pipeline"
    before = weights_hash(folder)
    shutil.copy(folder / "unet" / "diffusion_pytorch_model.safetensors", folder / "unet" / "ema.safetensors")
    shutil.copy(
        folder / "text_encoder" / "model.safetensors", folder / "text_encoder" / "model.fp16.safetensors"
    )
    assert weights_hash(folder) == before


def test_a_damaged_adapter_is_refused(runs: Path) -> None:
    trained_lora(runs / "base", runs / "lora")
    file = runs / "lora" / "adapter.json"
    whole = json.loads(file.read_text())
    assert whole["base"] == str(runs / "base") and whole["settings"]["alpha"] == 7
    for changes, message in (
        ({"kind": "lore"}, "unknown kind in .* 'lore': did you mean 'lora'"),
        ({"bose": "x"}, "unknown key in .* 'bose'"),
        ({"base_weights_hash": 3}, "base_weights_hash is 3: it must be of type str"),
        ({"base": str(runs / "lora")}, "is itself"),
        ({"settings": {"auto_map": "x"}}, "has the key 'auto_map'"),
    ):
        edit(file, **changes)
        with pytest.raises(UserError, match=message):
            load(runs / "lora")
        file.write_text(json.dumps(whole))
    weights = runs / "lora" / "pytorch_lora_weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-5])
    with pytest.raises(UserError, match="not a valid safetensors file"):
        load(runs / "lora")
    weights.unlink()
    with pytest.raises(UserError, match=r"pytorch_lora_weights.safetensors does not exist"):
        load(runs / "lora")


def test_the_noise_schedule_is_that_of_its_training(runs: Path) -> None:
    live = trained_lora(runs / "base", runs / "lora")
    edit(runs / "base" / "pipeline" / "scheduler" / "scheduler_config.json", prediction_type="epsilon")
    edit(runs / "lora" / "ldm.json", defaults={"height": 32, "width": 16, "num_inference_steps": 7})
    parts = load(runs / "lora")
    assert (
        parts.scheduler_config["prediction_type"]
        == live.scheduler_config["prediction_type"]
        == "v_prediction"
    )
    assert (parts.defaults.height, parts.defaults.num_inference_steps) == (32, 7)


def test_info_names_the_adapter_and_its_base(runs: Path) -> None:
    trained_lora(runs / "base", runs / "lora" / "pipeline")
    result = CliRunner().invoke(app, ["info", str(runs / "lora")])
    assert result.exit_code == 0, result.output
    assert f"on {runs / 'base'} (rank 3, alpha 7.0, target_modules [" in result.output


def test_another_autoencoder_does_not_count_as_another_base(runs: Path) -> None:
    base = find_base(runs / "base", load(runs / "base"))
    live = trained_lora(runs / "base", runs / "plain")
    adapter = Adapter(
        "lora",
        base.given,
        base.weights_hash,
        live.scheduler_config,
        SETTINGS.model_dump(mode="json"),
        base.parts,
    )
    save_adapter(runs / "lora", adapter, lora_weights(networks_of(live)), live.defaults)
    other = load(runs / "base").autoencoder.vae
    other.register_to_config(scaling_factor=0.5)
    other.save_pretrained(runs / "vae")
    loaded = load_pipeline(runs / "lora", vae=runs / "vae")
    assert loaded.autoencoder.vae.config.scaling_factor == 0.5
    expected = load_pipeline(runs / "lora").denoiser.state_dict()
    for name, weight in loaded.denoiser.state_dict().items():
        torch.testing.assert_close(weight, expected[name], rtol=0, atol=0)
    edit(runs / "base" / "pipeline" / "vae" / "config.json", scaling_factor=0.5)
    with pytest.raises(UserError, match="but not the same vae"):
        load_pipeline(runs / "lora")


def test_a_lora_of_no_network_is_refused(runs: Path) -> None:
    base = find_base(runs / "base")
    adapter = Adapter("lora", base.given, base.weights_hash, {}, {})
    odd = LoraWeights(
        {"vae.x.lora_A.weight": torch.zeros(1, 1)},
        {"vae": {"r": 1, "lora_alpha": 1, "target_modules": ["x"]}},
    )
    save_adapter(runs / "odd", adapter, odd, load(runs / "base").defaults)
    with pytest.raises(UserError, match="unknown network in the LoRA 'vae'"):
        load(runs / "odd")

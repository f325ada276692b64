"""A model is more than its safetensors: whatever decides an image is in its identity, and nothing else is."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ldm.errors import UserError
from ldm.generation.finished import image_fault
from ldm.generation.reproduce import read_original
from ldm.models.adapters.embedding import EmbeddingSettings, add_embedding, embedding_vectors
from ldm.models.adapters.folder import Adapter, find_base, identity_of_model, save_adapter
from ldm.models.adapters.lora import LoraSettings, add_lora, lora_weights
from ldm.models.identity import Identity, changed_parts
from ldm.models.loading.folder import weights_hash
from ldm.models.loading.model import load_parts, save_parts
from ldm.pipeline.batches import Prompt, list_images
from ldm.pipeline.pipeline import Pipeline, load_pipeline
from ldm.pipeline.record import read_settings, write_png
from tests.support.tiny_loras import disturb, networks_of
from tests.support.tiny_models import make_sd1

Change = Callable[[Path], None]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("identity")
    save_parts(make_sd1(folder / "tokenizer"), folder / "model")
    return folder / "model"


@pytest.fixture(scope="module")
def known(saved: Path) -> Identity:
    return identity(saved)


@pytest.fixture
def model(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "model"))


def identity(model: Path) -> Identity:
    return identity_of_model(load_parts(model), model)


def set_in(name: str, **changes: Any) -> Change:
    """Change values in a JSON file."""

    def change(model: Path) -> None:
        path = model / name
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def swap_words(model: Path) -> None:
    """Two tokens of the vocabulary exchange their ids, in every file of the tokenizer."""
    path = model / "tokenizer" / "tokenizer.json"
    tree = json.loads(path.read_text())
    vocab = tree["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]
    path.write_text(json.dumps(tree))
    (model / "tokenizer" / "vocab.json").write_text(json.dumps(vocab))


def drop_last_merge(model: Path) -> None:
    path = model / "tokenizer" / "tokenizer.json"
    tree = json.loads(path.read_text())
    tree["model"]["merges"].pop()
    path.write_text(json.dumps(tree))
    merges = model / "tokenizer" / "merges.txt"
    merges.write_text("\n".join(merges.read_text().splitlines()[:-1]) + "\n")


def flip_bit(model: Path) -> None:
    path = model / "unet" / "diffusion_pytorch_model.safetensors"
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.write_bytes(data)


SCHEDULER, UNET = "scheduler/scheduler_config.json", "unet/config.json"
VAE, TEXT, TOKENIZER = "vae/config.json", "text_encoder/config.json", "tokenizer/tokenizer_config.json"
CHANGES: dict[str, tuple[Change, str]] = {
    "beta_end": (set_in(SCHEDULER, beta_end=0.02), "scheduler"),
    "beta_schedule": (set_in(SCHEDULER, beta_schedule="linear"), "scheduler"),
    "prediction_type": (set_in(SCHEDULER, prediction_type="v_prediction"), "scheduler"),
    "clip_sample": (set_in(SCHEDULER, clip_sample=True), "scheduler"),
    "timestep_spacing": (set_in(SCHEDULER, timestep_spacing="trailing"), "scheduler"),
    "the scheduler's class": (
        set_in("model_index.json", scheduler=["diffusers", "DDIMScheduler"]),
        "scheduler",
    ),
    "scaling_factor": (set_in(VAE, scaling_factor=0.2), "vae"),
    "shift_factor": (set_in(VAE, shift_factor=0.1), "vae"),
    "the VAE's act_fn": (set_in(VAE, act_fn="gelu"), "vae"),
    "the UNet's act_fn": (set_in(UNET, act_fn="gelu"), "unet"),
    "attention_head_dim": (set_in(UNET, attention_head_dim=4), "unet"),
    "flip_sin_to_cos": (set_in(UNET, flip_sin_to_cos=False), "unet"),
    "norm_eps": (set_in(UNET, norm_eps=1e-3), "unet"),
    "hidden_act": (set_in(TEXT, hidden_act="gelu"), "text_encoder"),
    "num_attention_heads": (set_in(TEXT, num_attention_heads=4), "text_encoder"),
    "pad_token": (set_in(TOKENIZER, pad_token="a</w>"), "tokenizer"),
    "model_max_length": (set_in(TOKENIZER, model_max_length=12), "tokenizer"),
    "vocabulary": (swap_words, "tokenizer"),
    "merges": (drop_last_merge, "tokenizer"),
    "defaults": (set_in("ldm.json", defaults={"guidance_scale": 2.5}), "defaults"),
    "weights": (flip_bit, "unet"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_decides_an_image_is_in_the_identity(model: Path, known: Identity, name: str) -> None:
    change, part = CHANGES[name]
    change(model)
    now = identity(model)
    assert changed_parts(known.parts, now.parts) == [part]
    assert now.hash != known.hash
    assert (now.weights_hash == known.weights_hash) is (name != "weights")


def rewrite(path: Path, **more: Any) -> None:
    """The same JSON in another order and form, with more keys."""
    tree = json.loads(path.read_text())
    path.write_text(json.dumps(dict(reversed((tree | more).items())), indent=7))


def test_files_written_anew_are_the_same_model(saved: Path, model: Path, known: Identity) -> None:
    rewrite(model / SCHEDULER, num_train_timesteps=1000.0, _diffusers_version="9.9", trained_betas=None)
    rewrite(model / UNET, act_fn="silu", _diffusers_version="9.9", norm_eps=1e-05)  # their defaults
    rewrite(model / VAE, _name_or_path="elsewhere", mid_block_add_attention=True)
    rewrite(model / TEXT, transformers_version="9.9", dtype="float16", attention_dropout=0)
    rewrite(model / TOKENIZER)
    rewrite(model / "tokenizer" / "tokenizer.json")
    rewrite(model / "model_index.json", _diffusers_version="9.9")
    now = identity(model)
    assert changed_parts(known.parts, now.parts) == []
    assert now.hash == known.hash
    for name, before in load_parts(saved).networks().items():
        after = load_parts(model).networks()[name].state_dict()
        assert all(torch.equal(after[key], tensor) for key, tensor in before.state_dict().items())


def test_an_identity_does_not_depend_on_dtype_or_on_use(saved: Path, known: Identity) -> None:
    pipeline = load_pipeline(saved, dtype="bfloat16")
    pipeline.generate("a red apple", num_inference_steps=1)
    assert pipeline.identity == known


# Images


def made(model: Path, path: Path) -> Path:
    pipeline = load_pipeline(model)
    result = pipeline.generate("a red apple", seed=3, num_inference_steps=1)
    write_png(path, result.images[0], result.records[0])
    return path


def fault(pipeline: Pipeline, path: Path) -> str | None:
    (request,) = list_images([Prompt("a red apple", read_original(path).prompt.settings)])
    (record,) = pipeline.expected_records([request])
    return image_fault(path, record.to_json())


@pytest.mark.parametrize("name", ["beta_end", "scaling_factor", "pad_token"])
def test_resuming_and_reproducing_notice_another_model(model: Path, tmp_path: Path, name: str) -> None:
    path = made(model, tmp_path / "a.png")
    change, part = CHANGES[name]
    same = load_pipeline(model)
    assert fault(same, path) is None and read_original(path).mismatch(same.identity) == ""
    change(model)
    other = load_pipeline(model)
    said = f"{path} was made with the same weights but not the same {part}"
    assert fault(other, path) == said
    assert read_original(path).mismatch(other.identity) == said


def test_changed_defaults_do_not_stop_an_image_from_being_reproduced(model: Path, tmp_path: Path) -> None:
    path = made(model, tmp_path / "a.png")
    CHANGES["defaults"][0](model)
    assert read_original(path).mismatch(load_pipeline(model).identity) == ""


def test_an_image_of_an_older_version_is_compared_by_its_weights(model: Path, tmp_path: Path) -> None:
    path, pipeline = made(model, tmp_path / "a.png"), load_pipeline(model)
    record = {key: value for key, value in read_settings(path).items() if key != "model_parts"}
    image = pipeline.generate("a red apple", seed=3, num_inference_steps=1).images[0]
    write_png(path, image, record | {"record_version": 2}, overwrite=True)
    CHANGES["beta_end"][0](model)
    changed = load_pipeline(model)
    assert fault(changed, path) is None and read_original(path).mismatch(changed.identity) == ""
    CHANGES["weights"][0](model)
    assert "was made with weights_hash" in str(fault(load_pipeline(model), path))
    assert "was made with other weights" in read_original(path).mismatch(load_pipeline(model).identity)


# Adapters


def trained_lora(base: Path, folder: Path) -> Path:
    parts = load_parts(base)
    found = find_base(base, parts)
    settings = LoraSettings(rank=2)
    add_lora(networks_of(parts), settings, seed=0)
    disturb(networks_of(parts))
    adapter = Adapter(
        "lora", str(base), found.weights_hash, parts.scheduler_config, {}, base_parts=dict(found.parts)
    )
    save_adapter(folder, adapter, lora_weights(networks_of(parts)), parts.defaults)
    return folder


@pytest.mark.parametrize("name", ["the UNet's act_fn", "vocabulary"])
def test_an_adapter_refuses_a_base_of_other_configurations(model: Path, tmp_path: Path, name: str) -> None:
    lora = trained_lora(model, tmp_path / "lora")
    load_parts(lora)
    change, part = CHANGES[name]
    change(model)
    with pytest.raises(UserError, match=f"has the weights it had in training, but not the same {part}"):
        load_parts(lora)


@pytest.mark.parametrize("name", ["beta_end", "defaults"])
def test_an_adapter_has_a_noise_schedule_and_defaults_of_its_own(
    model: Path, tmp_path: Path, name: str
) -> None:
    lora = trained_lora(model, tmp_path / "lora")
    before = identity(lora)
    CHANGES[name][0](model)
    assert identity(lora) == before


def test_an_adapter_of_an_older_version_is_compared_by_its_weights(model: Path, tmp_path: Path) -> None:
    lora = trained_lora(model, tmp_path / "lora")
    tree = json.loads((lora / "adapter.json").read_text())
    del tree["base_parts"]
    (lora / "adapter.json").write_text(json.dumps(tree))
    CHANGES["hidden_act"][0](model)
    load_parts(lora)
    flip_bit(model)
    with pytest.raises(UserError, match="has other weights now"):
        load_parts(lora)


def test_an_adapter_is_a_part_of_its_model(model: Path, tmp_path: Path, known: Identity) -> None:
    lora = trained_lora(model, tmp_path / "lora")
    now = identity(lora)
    assert changed_parts(known.parts, now.parts) == ["adapter"]
    file = lora / "pytorch_lora_weights.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    assert changed_parts(now.parts, identity(lora).parts) == ["adapter"]


def test_a_new_token_is_a_part_of_its_model(model: Path, tmp_path: Path, known: Identity) -> None:
    parts = load_parts(model)
    base = find_base(model, parts)
    settings = EmbeddingSettings(token="<cat>", initial_word="red", num_vectors=2)
    add_embedding(parts.text_encoder, settings)
    adapter = Adapter(
        "embedding", str(model), base.weights_hash, parts.scheduler_config, {}, base_parts=dict(base.parts)
    )
    with torch.no_grad():
        save_adapter(
            tmp_path / "cat", adapter, {"<cat>": embedding_vectors(parts.text_encoder)[0]}, parts.defaults
        )
    now = identity(tmp_path / "cat")
    assert changed_parts(known.parts, now.parts) == ["adapter", "text_encoder", "tokenizer"]
    assert now.weights_hash == weights_hash(tmp_path / "cat")

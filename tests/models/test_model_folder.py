"""Model folders: saved folders are stock diffusers folders, and anything but data is refused before loading."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file

from ldm.errors import UserError
from ldm.models.loading import source as model_source
from ldm.models.loading.folder import check_folder, read_defaults, weights_hash
from ldm.models.loading.model import load_parts
from ldm.models.loading.source import find_model
from ldm.noise import image_generators
from ldm.pipeline.pipeline import Pipeline, load_pipeline
from tests.support.tiny_models import make_sd1, make_sd2


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    return Pipeline(make_sd2(tmp_path_factory.mktemp("tokenizer")))


@pytest.fixture(scope="module")
def saved(pipeline: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    pipeline.save(folder, max_shard_size="100KB", provenance={"data": "none"})
    return folder


@pytest.fixture
def model(saved: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(saved, tmp_path / "model"))


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_saved_model_generates_the_same_images(pipeline: Pipeline, saved: Path) -> None:
    expected = pipeline.generate("a red apple", seed=3)
    made = load_pipeline(saved, device="cpu").generate("a red apple", seed=3)
    assert torch.equal(made.latents, expected.latents)
    assert made.images[0].tobytes() == expected.images[0].tobytes()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_stock_diffusers_loads_what_is_saved(pipeline: Pipeline, tmp_path: Path, dtype: torch.dtype) -> None:
    pipeline.save(tmp_path / "m", dtype=dtype)
    weights = load_file(tmp_path / "m" / "unet" / "diffusion_pytorch_model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {dtype}
    stock = StableDiffusionPipeline.from_pretrained(tmp_path / "m", local_files_only=True)
    stock.set_progress_bar_config(disable=True)
    theirs = stock("a red apple", num_inference_steps=3, generator=image_generators([3]), height=16, width=16)
    ours = load_pipeline(tmp_path / "m", device="cpu").generate(
        "a red apple", num_inference_steps=3, scheduler="ddim", seed=3
    )
    difference = np.asarray(ours.images[0], dtype=int) - np.asarray(theirs.images[0], dtype=int)
    assert np.abs(difference).max() <= 1


def test_weights_are_split_and_older_readers_find_theirs(saved: Path) -> None:
    assert all(path.stat().st_size < 120_000 for path in saved.rglob("*.safetensors"))
    assert (saved / "unet" / "diffusion_pytorch_model.safetensors.index.json").is_file()
    vocab = json.loads((saved / "tokenizer" / "vocab.json").read_text())
    assert vocab["<|endoftext|>"] == len(vocab) - 1
    merges = (saved / "tokenizer" / "merges.txt").read_text().splitlines()
    assert merges[0] == "#version: 0.2" and all(len(line.split()) == 2 for line in merges[1:])
    index = json.loads((saved / "text_encoder" / "model.safetensors.index.json").read_text())
    assert all(name.startswith("text_model.") for name in index["weight_map"])


@pytest.mark.parametrize("left_out", ["tokenizer.json", "vocab.json"])
def test_either_form_of_the_tokenizer_is_enough(pipeline: Pipeline, model: Path, left_out: str) -> None:
    prompts = ["a red apple", "Größe 7"]
    (model / "tokenizer" / left_out).unlink()
    tokens = load_parts(model).text_encoder.tokenize(prompts)
    assert torch.equal(tokens, pipeline.text_encoder.tokenize(prompts))


def test_saving_twice_needs_replace(pipeline: Pipeline, model: Path) -> None:
    with pytest.raises(UserError, match="exists already"):
        pipeline.save(model)
    pipeline.save(model, replace=True)
    assert json.loads((model / "ldm.json").read_text())["provenance"] == {}
    assert [path.name for path in model.parent.iterdir()] == ["model"]


def test_weights_hash_is_of_the_weights_alone(saved: Path, model: Path) -> None:
    edit(model / "ldm.json", note="x")
    assert weights_hash(model) == weights_hash(saved)
    shard = next((model / "unet").glob("*.safetensors"))
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    assert weights_hash(model) != weights_hash(saved)


def test_half_precision_is_cast_up_and_fp16_files_are_found(pipeline: Pipeline, tmp_path: Path) -> None:
    folder = tmp_path / "m"
    pipeline.save(folder, dtype=torch.float16)
    for path in [*folder.rglob("diffusion_pytorch_model.safetensors"), *folder.rglob("model.safetensors")]:
        path.rename(path.with_suffix("").with_suffix(".fp16.safetensors"))
    parts = load_parts(folder)
    assert {p.dtype for module in parts.modules().values() for p in module.parameters()} == {torch.float32}
    assert not any(p.requires_grad for module in parts.modules().values() for p in module.parameters())
    assert not any(module.training for module in parts.modules().values())


STOCK = {
    "height": 16,
    "width": 16,
    "num_inference_steps": 25,
    "guidance_scale": 7.5,
    "guidance_rescale": 0.0,
    "scheduler": "dpmpp_2m",
    "max_prompt_chunks": 1,
    "guidance_interval": (0.0, 1.0),
}


def defaults_of(folder: Path) -> dict[str, Any]:
    return load_parts(folder).defaults.model_defaults()


def test_defaults_come_from_ldm_json(saved: Path, model: Path) -> None:
    assert defaults_of(saved) == {**STOCK, "num_inference_steps": 4}
    edit(model / "ldm.json", defaults={"width": 24, "guidance_scale": 3, "scheduler": "ddim"})
    assert defaults_of(model) == {**STOCK, "width": 24, "guidance_scale": 3, "scheduler": "ddim"}
    (model / "ldm.json").unlink()
    assert defaults_of(model) == {**STOCK, "max_prompt_chunks": 3, "scheduler": "model"}


@pytest.mark.parametrize(
    ("defaults", "message"),
    [
        ({"guidance": 3.0}, "unknown key .* 'guidance': did you mean 'guidance_scale'"),
        ({"height": "64"}, "height is '64'"),
        ({"num_inference_steps": 2.5}, "num_inference_steps is 2.5"),
        ({"scheduler": 3}, "scheduler is 3"),
        ({"guidance_interval": [0.5, True]}, "guidance_interval is .* must be a list of two finite numbers"),
        (
            {"guidance_interval": [0.5, 3.0]},
            "ldm.json: guidance_interval is 0.5 3: give increasing fractions",
        ),
    ],
)
def test_mistaken_defaults_are_refused(tmp_path: Path, defaults: dict[str, Any], message: str) -> None:
    (tmp_path / "ldm.json").write_text(json.dumps({"defaults": defaults}))
    with pytest.raises(UserError, match=message):
        read_defaults(tmp_path, 16, 16)


def remove_weights(model: Path, leave: str = "") -> None:
    for path in (model / "unet").glob("*.safetensors*"):
        path.unlink()
    if leave:
        (model / "unet" / leave).write_bytes(b"\x80\x04")


def drop_part(model: Path) -> None:
    index = json.loads((model / "model_index.json").read_text())
    del index["vae"]
    (model / "model_index.json").write_text(json.dumps(index))


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no index": (lambda m: (m / "model_index.json").unlink(), "is not a model folder"),
    "index no JSON": (
        lambda m: (m / "model_index.json").write_text("{"),
        "model_index.json is not valid JSON",
    ),
    "index no object": (lambda m: (m / "model_index.json").write_text("[]"), "does not hold a JSON object"),
    "part not listed": (drop_part, "model_index.json has no vae"),
    "part is null": (lambda m: edit(m / "model_index.json", vae=[None, None]), "has no vae"),
    "part not there": (lambda m: shutil.rmtree(m / "vae"), "vae does not exist"),
    "no config": (lambda m: (m / "unet" / "config.json").unlink(), "unet"),
    "no weights": (remove_weights, "unet has no diffusion_pytorch_model.safetensors"),
    "no shard": (lambda m: next((m / "unet").glob("*-00002-*")).unlink(), "unet"),
    "no tokenizer": (
        lambda m: [p.unlink() for p in (m / "tokenizer").iterdir()],
        "neither tokenizer.json nor",
    ),
    "no scheduler config": (lambda m: (m / "scheduler" / "scheduler_config.json").unlink(), "does not exist"),
    "bin": (
        lambda m: remove_weights(m, "diffusion_pytorch_model.bin"),
        "is a pickle: only safetensors are read",
    ),
    "ckpt": (lambda m: remove_weights(m, "x.ckpt"), "x.ckpt is a pickle"),
    "other unet": (
        lambda m: edit(m / "model_index.json", unet=["diffusers", "UNet3DConditionModel"]),
        "unet is a UNet3DConditionModel: supported: UNet2DConditionModel",
    ),
    "own code": (
        lambda m: edit(m / "model_index.json", unet=["my_unet", "UNet2DConditionModel"]),
        "unet comes from 'my_unet'",
    ),
    "second text encoder": (
        lambda m: edit(
            m / "model_index.json", text_encoder_2=["transformers", "CLIPTextModelWithProjection"]
        ),
        "text_encoder_2 does not exist: the model is incomplete",
    ),
    "foreign scheduler": (
        lambda m: edit(m / "model_index.json", scheduler=["diffusers", "CMStochasticIterativeScheduler"]),
        "scheduler is a CMStochasticIterativeScheduler",
    ),
    "odd entry": (lambda m: edit(m / "model_index.json", unet=["diffusers"]), "unet comes from None"),
    "custom pipeline": (lambda m: edit(m / "model_index.json", custom_pipeline="x"), "'custom_pipeline'"),
    "auto_map": (lambda m: edit(m / "unet" / "config.json", auto_map={"AutoModel": "x.Y"}), "'auto_map'"),
    "trust": (lambda m: edit(m / "vae" / "config.json", trust_remote_code=True), "'trust_remote_code'"),
    "attention kernel": (
        lambda m: edit(m / "text_encoder" / "config.json", _attn_implementation_internal="user/kernel"),
        "'_attn_implementation_internal'",
    ),
    "tokenizer code": (
        lambda m: edit(m / "tokenizer" / "tokenizer_config.json", a=[{"auto_map": {"x": "y"}}]),
        "tokenizer_config.json has the key 'auto_map'",
    ),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_or_unsafe_folder_is_refused(model: Path, kind: str) -> None:
    damage, message = DAMAGE[kind]
    damage(model)
    for name in ("my_unet.py", "x.py"):
        (model / name).write_text("raise SystemExit('imported')")
    with pytest.raises(UserError) as caught:
        load_parts(model)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["no weights", "bin", "ckpt"])
def test_weights_are_checked_before_anything_is_loaded(model: Path, kind: str) -> None:
    DAMAGE[kind][0](model)
    with pytest.raises(UserError, match="unet"):
        check_folder(model)


def test_the_safety_checker_is_ignored(model: Path) -> None:
    edit(
        model / "model_index.json",
        safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"],
        feature_extractor=["transformers", "CLIPImageProcessor"],
    )
    check_folder(model)


def test_components_that_do_not_fit_are_refused(model: Path, tmp_path: Path) -> None:
    Pipeline(make_sd1(tmp_path / "tokenizer")).save(tmp_path / "other")
    shutil.rmtree(model / "text_encoder")
    shutil.copytree(tmp_path / "other" / "text_encoder", model / "text_encoder")
    with pytest.raises(UserError, match="the unet has text width 48, the text_encoder 32"):
        load_parts(model)


def test_a_model_is_found_by_folder_or_run_and_named_without_its_path(model: Path, tmp_path: Path) -> None:
    assert find_model(model) == (model, "model")
    assert find_model(str(model)) == (model, "model")
    run = tmp_path / "my-run"
    run.mkdir()
    model.rename(run / "pipeline")
    assert find_model(run) == (run / "pipeline", "my-run")
    assert find_model(run / "pipeline") == (run / "pipeline", "my-run")


def test_embedded_name_wins_and_says_when_it_is_not_there(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(model_source.EMBEDDED, "emoji", saved)
    assert find_model("emoji") == (saved, "emoji")
    monkeypatch.setitem(model_source.EMBEDDED, "emoji", tmp_path / "none")
    with pytest.raises(UserError, match="'emoji' is not in this installation"):
        find_model("emoji")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no-such-user/no-such-model", "the Hub has no model with that id .*check the name and the network"),
        ("no_such_folder", "no model 'no_such_folder'"),
        ("/no/such/folder", "no model '/no/such/folder'"),
    ],
)
def test_a_model_that_does_not_exist(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        find_model(name)


def test_a_hub_model_in_the_cache_needs_no_network(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    cached = tmp_path / "models--user--tiny"
    commit = "0123456789abcdef0123456789abcdef01234567"
    shutil.copytree(saved, cached / "snapshots" / commit)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(commit)
    assert find_model("user/tiny") == (cached / "snapshots" / commit, "user/tiny")


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.json").write_bytes(b"")
    with pytest.raises(UserError, match=r"m\.json is a file: name a model folder or a \.safetensors file"):
        find_model(tmp_path / "m.json")
    (tmp_path / "m.ckpt").write_bytes(b"")
    with pytest.raises(UserError, match=r"m\.ckpt is a pickle: only safetensors .*ldm import --allow-pickle"):
        find_model(tmp_path / "m.ckpt")

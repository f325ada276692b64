"""Untrusted model folders: a configuration that lies, names other files or brings code is refused before memory is
allocated, and no code in the folder is ever run.
"""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.utils._python_dispatch import TorchDispatchMode

from ldm.errors import UserError
from ldm.models.families.stable_diffusion import CLIP_COMPONENT, VAE_COMPONENT
from ldm.models.loading.components import load_tokenizer, weights_faults
from ldm.models.loading.folder import check_folder, check_keys, weights_variant
from ldm.models.loading.model import load_parts, save_parts
from tests.support.hostile_files import (
    LIES,
    TWO_NUMBERS,
    code_that_makes,
    edit_json,
    pickle_that_makes,
    write_safetensors,
)
from tests.support.tiny_models import make_sd2

LARGEST = 100_000
"""An upper bound for the largest tensor that these models need; the lies ask for more than 10^8 numbers."""


class Allocations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records the size of the largest tensor that is allocated, in numbers."""

    largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for each in result if isinstance(result, tuple | list) else (result,):
            if isinstance(each, torch.Tensor) and not each.is_meta:
                self.largest = max(self.largest, each.numel())
        return result


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    save_parts(make_sd2(tmp_path_factory.mktemp("tokenizer")), folder, max_shard_size="100KB")
    return folder


@pytest.fixture
def model(saved: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(saved, tmp_path / "model"))


def pipe(name: str) -> Callable[[Path], object]:
    def damage(model: Path) -> None:
        (model / name).unlink(missing_ok=True)
        os.mkfifo(model / name)

    return damage


def link_to_a_device(name: str) -> Callable[[Path], object]:
    return lambda model: (model / name).symlink_to("/dev/zero")


def add_token(model: Path) -> None:
    """A token that the text encoder has no row for, written as `add_tokens` and `save_pretrained` do."""
    tokenizer = load_tokenizer(model / "tokenizer")
    tokenizer.add_tokens(["<extra>"])
    tokenizer.save_pretrained(model / "tokenizer")


def far_id(model: Path) -> None:
    """An id far beyond the embeddings, in all files of the vocabulary."""
    for name in ("vocab.json", "tokenizer.json"):
        if (path := model / "tokenizer" / name).is_file():
            value = json.loads(path.read_text())
            words = value if name == "vocab.json" else value["model"]["vocab"]
            words[next(word for word in words if len(word) > 5 and "<" not in word[:1])] = 10**6
            path.write_text(json.dumps(value))


def config(part: str, **changes: Any) -> Callable[[Path], object]:
    names = {"scheduler": "scheduler_config.json", "tokenizer": "tokenizer_config.json"}
    name = names.get(part, "config.json")
    return lambda model: edit_json(model / part / name, **changes)


def index_names(file: str) -> Callable[[Path], object]:
    """The index of the unet's shards names another, valid file for its first weight."""

    def damage(model: Path) -> None:
        index = model / "unet" / "diffusion_pytorch_model.safetensors.index.json"
        first = next(iter(json.loads(index.read_text())["weight_map"].items()))
        for outside in (model.parent / "other.safetensors", model / "unet" / "other.safetensors"):
            shutil.copy(model / "unet" / first[1], outside)
        value = json.loads(index.read_text())
        value["weight_map"][first[0]] = file.format(outside=model.parent)
        index.write_text(json.dumps(value))

    return damage


def lie_in_a_shard(kind: str) -> Callable[[Path], object]:
    def damage(model: Path) -> None:
        write_safetensors(next((model / "vae").glob("*.safetensors")), LIES[kind][0])

    return damage


def large_file(name: str) -> Callable[[Path], object]:
    return lambda model: os.truncate(model / name, 2**34)


def large_pictures(model: Path) -> None:
    """A stock folder, whose default size comes from the unet's configuration."""
    (model / "ldm.json").unlink()
    edit_json(model / "unet" / "config.json", sample_size=10**9)


def adapter_beside(model: Path) -> None:
    """An adapter that transformers would load into the network by itself."""
    (model / "text_encoder" / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 4}')
    write_safetensors(model / "text_encoder" / "adapter_model.safetensors", {"a": TWO_NUMBERS})


HOSTILE: dict[str, tuple[Callable[[Path], object], str]] = {
    "wide unet": (config("unet", block_out_channels=[16_000, 32_000]), "unet: config.json asks for "),
    "wide vae": (config("vae", block_out_channels=[8_000, 16_000]), "vae: config.json asks for "),
    "many words": (config("text_encoder", vocab_size=10**9), "text_encoder: config.json asks for "),
    "long texts": (
        config("text_encoder", max_position_embeddings=10**9),
        "text_encoder: config.json asks for ",
    ),
    "beyond counting": (config("unet", block_out_channels=[2**62, 2**62]), "unet"),
    "deep unet": (config("unet", layers_per_block=10**9), " layers, and the safetensors hold"),
    "deep levels": (config("unet", layers_per_block=[1, 10**9]), "000,000,000 layers"),
    "deep attention": (config("unet", transformer_layers_per_block=[[10**9], 1]), "000,000,000 layers"),
    "deep text": (config("text_encoder", num_hidden_layers=10**9), "000,000,000 layers"),
    "many levels": (config("vae", down_block_types=["DownEncoderBlock2D"] * 10**5), "100,000 layers"),
    "division by zero": (config("unet", norm_num_groups=0), "unet cannot be loaded"),
    "no list": (config("unet", block_out_channels={"a": 1}), "unet cannot be loaded"),
    "long schedule": (config("scheduler", num_train_timesteps=10**12), "num_train_timesteps is 1,000,000"),
    "large pictures": (large_pictures, "sample_size 1000000000"),
    "large default": (
        lambda m: edit_json(m / "ldm.json", defaults={"height": 10**6}),
        "height is 1000000: it must be a whole number from 1 to 16384",
    ),
    "deep JSON": (
        lambda m: (m / "unet" / "config.json").write_text('{"a": ' + "[" * 100_000),
        "is not valid JSON",
    ),
    "large config": (large_file("unet/config.json"), "config.json cannot be read (it has more than"),
    "large vocabulary": (large_file("tokenizer/vocab.json"), "vocab.json cannot be read (it has more than"),
    "large index": (large_file("unet/diffusion_pytorch_model.safetensors.index.json"), "it has more than"),
    "index to above": (index_names("../../other.safetensors"), "index.json names '../../other"),
    "index to anywhere": (index_names("{outside}/other.safetensors"), "index.json names '/"),
    "index to another": (index_names("other.safetensors"), "index.json names 'other.safetensors'"),
    "index of nothing": (
        lambda m: edit_json(m / "unet" / "diffusion_pytorch_model.safetensors.index.json", weight_map=[]),
        "has no weight_map",
    ),
    "header lies": (lie_in_a_shard("shape beyond the bytes"), "not a valid safetensors file"),
    "header is huge": (lie_in_a_shard("too many brackets"), "not a valid safetensors file"),
    "pipe as config": (pipe("unet/config.json"), "it is a pipe, not a regular file"),
    "pipe as merges": (pipe("tokenizer/merges.txt"), "it is a pipe, not a regular file"),
    "pipe as a template": (pipe("tokenizer/chat_template.jinja"), "it is a pipe, not a regular file"),
    "device as JSON": (link_to_a_device("text_encoder/extra.json"), "it is a device, not a regular file"),
    "many labels": (config("text_encoder", num_labels=10**9), "num_labels is 1,000,000,000"),
    "list of activations": (config("text_encoder", hidden_act=["gelu"]), "text_encoder cannot be loaded"),
    "uneven heads": (config("text_encoder", num_attention_heads=7), "text_encoder cannot be loaded"),
    "400 digits": (
        lambda m: (m / "unet" / "config.json").write_text('{"sample_size": ' + "9" * 400 + "}"),
        "has 400 digits",
    ),
    "size of text": (config("unet", sample_size="x"), "sample_size 'x'"),
    "context of 2": (config("tokenizer", model_max_length=2), "model_max_length is 2"),
    "no context": (config("tokenizer", model_max_length=-1), "model_max_length is -1"),
    "broken context": (config("tokenizer", model_max_length=7.5), "model_max_length is 7.5"),
    "context of text": (config("tokenizer", model_max_length="x"), "model_max_length is 'x'"),
    "context of a list": (config("tokenizer", model_max_length=[]), "model_max_length is []"),
    "added token": (add_token, "has the token '<extra>' with the id "),
    "far id": (far_id, " rows"),
    "defaults of a list": (lambda m: edit_json(m / "ldm.json", defaults=[1]), "defaults is [1]"),
    "adapter": (adapter_beside, "adapter_config.json changes the model"),
    "class from a module": (config("unet", _class_name=["evil", "UNet"]), "is of the class \"['evil'"),
    "another class": (config("vae", _class_name="VQModel"), "is of the class 'VQModel'"),
    "experts": (config("text_encoder", _experts_implementation="user/kernel"), "'_experts_implementation'"),
    "attention": (config("text_encoder", attn_implementation="user/kernel"), "'attn_implementation'"),
    "kernels": (config("text_encoder", a=[{"b": {"use_kernels": True}}]), "'use_kernels'"),
    "pipeline code": (
        lambda m: edit_json(m / "model_index.json", custom_pipeline="evil"),
        "'custom_pipeline'",
    ),
    "generation code": (config("text_encoder", custom_generate="user/evil"), "'custom_generate'"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_no_code_is_run_and_no_memory_is_allocated(model: Path, tmp_path: Path, kind: str) -> None:
    marker = tmp_path / "it-ran"
    for name in ("evil.py", "pipeline.py", "unet/evil.py", "text_encoder/modeling_evil.py"):
        (model / name).write_text(code_that_makes(marker))
    for name in ("unet/diffusion_pytorch_model.bin", "text_encoder/adapter_model.bin", "optimizer.pt"):
        (model / name).write_bytes(pickle_that_makes(marker))
    damage, message = HOSTILE[kind]
    damage(model)
    with Allocations() as made, pytest.raises(UserError) as caught:  # type: ignore[no-untyped-call]
        load_parts(model)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert made.largest < LARGEST
    assert not marker.exists()


def test_the_hostile_files_would_run(tmp_path: Path) -> None:
    """The pickle and the module of these tests really run code."""
    import pickle

    pickle.loads(pickle_that_makes(tmp_path / "a"))
    exec(code_that_makes(tmp_path / "b"))
    assert (tmp_path / "a").is_dir() and (tmp_path / "b").is_dir()


def test_keys_that_are_off_are_allowed(model: Path) -> None:
    config("text_encoder", _attn_implementation_autoset=True, auto_map=None, trust_remote_code=False)(model)
    edit_json(model / "tokenizer" / "tokenizer_config.json", trust_remote_code=False)
    check_folder(model)
    load_parts(model)


def test_older_names_of_weights_are_read(model: Path, saved: Path) -> None:
    """The names of an autoencoder's attention before 2023, and the position ids that CLIP was stored with."""
    modern = (
        (".to_q.", ".query."),
        (".to_k.", ".key."),
        (".to_v.", ".value."),
        (".to_out.0.", ".proj_attn."),
    )
    tensors = gather(model / "vae")
    for new, old in modern:
        tensors = {name.replace(new, old): tensor for name, tensor in tensors.items()}
    save_file(tensors, model / "vae" / "diffusion_pytorch_model.safetensors")
    text = gather(model / "text_encoder") | {"text_model.embeddings.position_ids": torch.arange(16)[None]}
    save_file(text, model / "text_encoder" / "model.safetensors")
    assert (
        weights_faults(VAE_COMPONENT, model / "vae")
        == weights_faults(CLIP_COMPONENT, model / "text_encoder")
        == []
    )
    for ours, theirs in zip(
        load_parts(model).modules().values(), load_parts(saved).modules().values(), strict=True
    ):
        found = ours.state_dict()
        assert all(torch.equal(found[name], tensor) for name, tensor in theirs.state_dict().items())


def gather(folder: Path) -> dict[str, torch.Tensor]:
    """The weights of a component, whose files are removed."""
    tensors: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(path)
        path.unlink()
    for path in folder.glob("*.index.json"):
        path.unlink()
    return tensors


def test_shards_of_a_variant_are_found(saved: Path, tmp_path: Path) -> None:
    """The name of their index begins like that of the plain weights."""
    save_parts(
        load_parts(saved), tmp_path / "half", dtype=torch.float16, variant="fp16", max_shard_size="50KB"
    )
    assert (tmp_path / "half/unet/diffusion_pytorch_model.safetensors.index.fp16.json").is_file()
    assert weights_variant(tmp_path / "half", "unet") == "fp16"
    load_parts(tmp_path / "half")
    next((tmp_path / "half" / "unet").glob("*-00002-of-*")).unlink()
    with pytest.raises(UserError, match=r"index\.fp16\.json names"):
        load_parts(tmp_path / "half")


CODE = """
auto_map trust_remote_code custom_pipeline custom_pipelines custom_generate quantization_config compression_config
kernel_config kernel_mapping use_kernels use_local_kernel allow_all_kernels attn_implementation
_attn_implementation_internal
"""


@pytest.mark.parametrize("key", CODE.split())
def test_every_key_that_brings_code_is_refused_at_any_depth(key: str) -> None:
    for value in ({key: {"a": "b"}}, {"parts": [{"unet": {key: True}}]}):
        with pytest.raises(UserError, match=f"has the key '{key}': models that bring code"):
            check_keys(Path("config.json"), value)
    check_keys(Path("config.json"), {key: None, "parts": [{key: False}]})  # as stock folders have some


@pytest.mark.parametrize("suffix", [".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"])
def test_every_kind_of_pickle_is_named_and_not_read(tmp_path: Path, suffix: str) -> None:
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / f"weights{suffix}").write_bytes(b"")
    with pytest.raises(UserError, match=rf"weights\{suffix} is a pickle: only safetensors are read"):
        weights_variant(tmp_path, "unet")

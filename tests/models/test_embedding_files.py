"""Embeddings from files of other programs: in prompts, in records, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from ldm.errors import UserError
from ldm.generation.model_options import ModelOptions, load_model
from ldm.generation.reproduce import read_original
from ldm.models.adapters.embedding_files import apply_embeddings, split_token
from ldm.models.loading.model import save_parts
from ldm.pipeline.pipeline import load_pipeline
from ldm.pipeline.record import read_record
from tests.support.tiny_models import make_refiner, make_sd1, make_sdxl

STEPS: dict[str, Any] = {"num_inference_steps": 5, "scheduler": "euler", "seed": 3, "progress": False}


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(shape[0]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("embeddings")
    save_parts(make_sdxl(folder / "tokenizers"), folder / "xl")
    save_parts(make_refiner(folder / "tokenizer"), folder / "refiner")
    save_parts(make_sd1(folder / "tokenizer-1"), folder / "sd1")
    save_file({"clip_l": normal(2, 32), "clip_g": normal(2, 24)}, folder / "my cat.safetensors")
    save_file({"emb_params": normal(2, 32)}, folder / "old.safetensors")
    save_file({"<dog>": normal(32)}, folder / "any.safetensors")
    return folder


def test_files_of_all_programs_are_tokens(folder: Path) -> None:
    one, two = make_sd1(folder / "a").text_encoder, make_sdxl(folder / "b").text_encoder
    files = [f"{folder / 'old.safetensors'}", f"{folder / 'any.safetensors'}"]
    assert [each.token for each in apply_embeddings([one], files)] == ["<old>", "<dog>"]
    (used,) = apply_embeddings([two], [folder / "my cat.safetensors"])
    assert used.token == "<my-cat>"
    assert two.count_tokens("a <my-cat>") == two.count_tokens("a") + 2
    for encoder, key in zip(two.encoders, ("clip_l", "clip_g"), strict=True):
        rows = encoder.model.get_input_embeddings().weight[-2:]
        assert torch.equal(rows, {"clip_l": normal(2, 32), "clip_g": normal(2, 24)}[key])


def test_both_models_read_the_token_and_the_image_says_so(folder: Path, tmp_path: Path) -> None:
    token = f"{folder / 'my cat.safetensors'}=<cat>"
    plain = load_pipeline(folder / "xl", refiner=folder / "refiner", device="cpu")
    with_it = load_pipeline(folder / "xl", refiner=folder / "refiner", embeddings=[token], device="cpu")
    assert with_it.identity == plain.identity
    made, other = (each.generate("a <cat>", denoising_end=0.5, **STEPS) for each in (with_it, plain))
    assert not torch.equal(made.latents, other.latents)  # type: ignore[arg-type]
    assert with_it.refiner is not None and plain.refiner is not None
    ids = [each.refiner.parts.text_encoder.tokenize(["<cat>"]) for each in (with_it, plain)]  # type: ignore[union-attr]
    assert not torch.equal(*ids)
    (path,) = made.save(tmp_path)
    (used,) = read_record(path).embeddings
    assert used.token == "<cat>" and len(used.sha256) == 64
    original = read_original(path)
    options = ModelOptions(str(folder / "xl"), refiner=str(folder / "refiner"))
    with pytest.raises(UserError, match=r"with the embedding <cat> .*--embedding FILE=<cat>"):
        load_model(options, original)
    again = load_model(ModelOptions(**{**vars(options), "embeddings": (token,)}), original)
    latents = again.generate("a <cat>", denoising_end=0.5, **STEPS).latents
    assert torch.equal(latents, made.latents)  # type: ignore[arg-type]


def test_what_is_no_embedding_of_the_model_is_refused(folder: Path, tmp_path: Path) -> None:
    one = make_sd1(folder / "c").text_encoder
    save_file({"a": normal(2, 32), "b": normal(2, 32)}, tmp_path / "two.safetensors")
    save_file({"emb_params": normal(99, 32)}, tmp_path / "long.safetensors")
    save_file({"emb_params": normal(2, 32) / 0}, tmp_path / "inf.safetensors")
    (tmp_path / "old.pt").write_bytes(b"")
    for place, said in (
        (tmp_path / "two.safetensors", "is no embedding: it has 2 tensors"),
        (tmp_path / "long.safetensors", "has 99 vectors, and a prompt has room for 14"),
        (tmp_path / "inf.safetensors", "emb_params has values that are not finite"),
        (tmp_path / "old.pt", "is a pickle"),
        (tmp_path / "none.safetensors", "does not exist"),
        (folder / "my cat.safetensors", "this model has no second text encoder"),
    ):
        with pytest.raises(UserError, match=said):
            apply_embeddings([one], [place])
    half = make_refiner(folder / "d").text_encoder  # reads its own
    apply_embeddings([half], [folder / "my cat.safetensors"])
    with pytest.raises(UserError, match="is in the vocabulary"):
        apply_embeddings([half], [folder / "my cat.safetensors"])
    with pytest.raises(UserError, match="has no clip_l"):
        apply_embeddings([make_sdxl(folder / "e").text_encoder], [folder / "old.safetensors"])
    with pytest.raises(UserError, match="write FILE=<my-cat>"):
        split_token(f"{folder / 'old.safetensors'}=cat")

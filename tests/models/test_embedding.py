from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ldm.config import validate
from ldm.errors import UserError
from ldm.models.adapters.embedding import (
    EmbeddingSettings,
    add_embedding,
    apply_embedding,
    embedding_file,
    embedding_vectors,
    tokens_in_file,
)
from ldm.models.clip import ClipTextEncoder
from ldm.models.loading.model import ModelParts, load_parts, save_parts
from tests.support.tiny_models import make_sd1, make_sdxl

ONE = EmbeddingSettings(token="<Cat>", initial_word="apple")
THREE = EmbeddingSettings(token="<Cat>", initial_word="apple", num_vectors=3)
PROMPTS = ["a <cat> on a table", "a red apple", "<cat>, <CAT>"]


def embed(text_encoder: ClipTextEncoder, prompts: list[str] = PROMPTS) -> Tensor:
    with torch.no_grad():
        return text_encoder(prompts).prompt_embeds


def train(parts: ModelParts, settings: EmbeddingSettings) -> None:
    """A few steps with a large weight decay, which changes every weight that is trained."""
    parts.text_encoder.requires_grad_(False)
    add_embedding(parts.text_encoder, settings)
    trained = [p for p in parts.text_encoder.parameters() if p.requires_grad]
    assert trained == embedding_vectors(parts.text_encoder)
    optimizer = torch.optim.AdamW(trained, lr=0.1, weight_decay=0.5)
    for _ in range(3):
        parts.text_encoder(PROMPTS).prompt_embeds.square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("settings", [ONE, THREE])
def test_only_the_new_rows_are_trained(settings: EmbeddingSettings, tmp_path: Path) -> None:
    parts = make_sd1(tmp_path)
    before = {name: tensor.clone() for name, tensor in parts.text_encoder.state_dict().items()}
    without_it = embed(parts.text_encoder, ["a red apple"])
    train(parts, settings)
    after = parts.text_encoder.state_dict()
    table = "model.embeddings.token_embedding"
    vectors = after.pop(f"{table}.vectors")
    after[f"{table}.weight"] = after.pop(f"{table}.base.weight")
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items()) and len(after) == len(
        before
    )
    assert vectors.shape == (settings.num_vectors, 32)
    assert torch.equal(embed(parts.text_encoder, ["a red apple"]), without_it)
    assert (
        len({tuple(row.tolist()) for row in vectors}) == settings.num_vectors
    )  # each has learned its own place


def test_the_vectors_begin_as_the_initial_word(tmp_path: Path) -> None:
    parts = make_sd1(tmp_path)
    tokenizer, table = parts.text_encoder.tokenizer, parts.text_encoder.model.get_input_embeddings().weight
    ids = tokenizer("red apple", add_special_tokens=False)["input_ids"]
    assert len(ids) > 1
    add_embedding(parts.text_encoder, THREE.model_copy(update={"initial_word": "red apple"}))
    assert torch.equal(embedding_vectors(parts.text_encoder)[0], table[ids].mean(dim=0).expand(3, -1))


def test_a_token_of_several_vectors_takes_several_places(tmp_path: Path) -> None:
    one, three = make_sd1(tmp_path).text_encoder, make_sd1(tmp_path).text_encoder
    size = len(one.tokenizer)
    add_embedding(one, ONE), add_embedding(three, THREE)
    for prompt, times in (("a <cat>", 1), ("red<CAT>apple <cat>!", 2), ("cat", 0)):
        assert three.count_tokens(prompt) == one.count_tokens(prompt) + 2 * times
        assert (three.tokenize([prompt]) >= size).sum() == 3 * times
    assert three.tokenize(["<cat>"])[0, 1:4].tolist() == [size, size + 1, size + 2]
    assert three.truncated_words("a red apple on a table " + "<cat> " * 5).count("<cat>") in (2, 3)


@pytest.mark.parametrize("settings", [ONE, THREE])
def test_an_applied_token_equals_the_trained_one_and_that_of_diffusers(
    settings: EmbeddingSettings, tmp_path: Path
) -> None:
    parts, applied, stock = make_sd1(tmp_path), make_sd1(tmp_path), make_sd1(tmp_path)
    train(parts, settings)
    vectors = embedding_vectors(parts.text_encoder)[0].detach()
    apply_embedding(applied.text_encoder, "<cat>", vectors)
    assert type(applied.text_encoder.model.get_input_embeddings()) is nn.Embedding
    assert torch.equal(embed(applied.text_encoder), embed(parts.text_encoder))
    save_file({"<cat>": vectors}, tmp_path / "learned_embeds.safetensors")
    pipe = StableDiffusionPipeline(
        stock.autoencoder.vae, stock.text_encoder.model, stock.text_encoder.tokenizer, stock.denoiser.unet,
        DDIMScheduler(steps_offset=1, clip_sample=False), None, None, requires_safety_checker=False,
    )  # fmt: skip
    pipe.load_textual_inversion(tmp_path)
    theirs, _ = pipe.encode_prompt([*PROMPTS[:2], "<cat>, a <cat>"], torch.device("cpu"), 1, False)
    assert torch.equal(embed(applied.text_encoder, [*PROMPTS[:2], "<cat>, a <cat>"]), theirs)


def test_a_model_with_a_new_word_is_saved_if_its_tokenizer_can_hold_it(tmp_path: Path) -> None:
    parts, three = make_sd1(tmp_path), make_sd1(tmp_path)
    vector = torch.randn(32, generator=torch.Generator().manual_seed(0))
    apply_embedding(parts.text_encoder, "<cat>", vector)
    save_parts(parts, tmp_path / "model")
    assert torch.equal(embed(load_parts(tmp_path / "model").text_encoder), embed(parts.text_encoder))
    apply_embedding(three.text_encoder, "<cat>", vector.repeat(2, 1))
    with pytest.raises(UserError, match="<cat> has several vectors, which a tokenizer's files cannot hold"):
        save_parts(three, tmp_path / "other")
    trained = make_sd1(tmp_path)
    add_embedding(trained.text_encoder, ONE)
    with pytest.raises(UserError, match="an adapter is being trained in this model"):
        save_parts(trained, tmp_path / "other")


def test_what_cannot_be_a_new_token_is_refused(tmp_path: Path) -> None:
    parts = make_sd1(tmp_path)
    for known in ("apple", "Apple"):
        with pytest.raises(UserError, match=f"the token '{known}' is in the vocabulary"):
            apply_embedding(parts.text_encoder, known, torch.zeros(1, 32))
    for number in (1, 3):
        parts = make_sd1(tmp_path)
        apply_embedding(parts.text_encoder, "<cat>", torch.zeros(number, 32))
        with pytest.raises(UserError, match="the token '<CAT>' is in the vocabulary"):
            apply_embedding(parts.text_encoder, "<CAT>", torch.zeros(1, 32))
    with pytest.raises(UserError, match=r"the embedding of <dog> has shape \[1, 48\]: this model has .* 32"):
        apply_embedding(parts.text_encoder, "<dog>", torch.zeros(48))
    with pytest.raises(UserError, match="initial_word = '  ' is empty"):
        add_embedding(parts.text_encoder, EmbeddingSettings(token="<dog>", initial_word="  "))
    for token, hint in (("my cat", "<mycat>"), ("sks", "<sks>"), ("<a|b>", "<ab>")):
        with pytest.raises(
            UserError, match=f"token = .*write it in angle brackets and without spaces: {hint}"
        ):
            validate(EmbeddingSettings, {"token": token, "initial_word": "cat"})


@pytest.mark.parametrize("settings", [ONE, THREE])
def test_a_token_of_two_text_encoders_is_that_of_diffusers(
    settings: EmbeddingSettings, tmp_path: Path
) -> None:
    """Trained in both, saved by the names that such files have, and read by the stock pipeline."""
    parts, applied = make_sdxl(tmp_path / "1"), make_sdxl(tmp_path / "2")
    stock = make_sdxl(tmp_path / "3").components()
    train(parts, settings)
    file = embedding_file(parts.text_encoder, "<cat>")
    widths = {"clip_l": 32, "clip_g": 24}
    assert {name: list(t.shape) for name, t in file.items()} == {
        name: [settings.num_vectors, width] for name, width in widths.items()
    }
    save_file(
        {name: tensor.detach() for name, tensor in file.items()}, tmp_path / "learned_embeds.safetensors"
    )
    ((token, vectors),) = tokens_in_file(load_file(tmp_path / "learned_embeds.safetensors"), "<cat>").items()
    apply_embedding(applied.text_encoder, token, vectors)
    assert torch.equal(embed(applied.text_encoder), embed(parts.text_encoder))
    pipe = StableDiffusionXLPipeline(**stock, scheduler=DDIMScheduler(), add_watermarker=False)
    for key, suffix in (("clip_l", ""), ("clip_g", "_2")):
        pipe.load_textual_inversion(
            vectors[key],  # type: ignore[index]
            token="<cat>",
            text_encoder=stock[f"text_encoder{suffix}"],
            tokenizer=stock[f"tokenizer{suffix}"],
        )
    prompts = [*PROMPTS[:2], "<cat>, a <cat>"]
    embeds, _, pooled, _ = pipe.encode_prompt(prompts, device=torch.device("cpu"))
    with torch.no_grad():
        ours = applied.text_encoder(prompts)
    assert torch.equal(ours.prompt_embeds, embeds) and torch.equal(ours.pooled, pooled)  # type: ignore[arg-type]
    for encoder, suffix in zip(applied.text_encoder.encoders, ("", "_2"), strict=True):
        written = pipe.maybe_convert_prompt("a <cat>", stock[f"tokenizer{suffix}"])
        theirs = stock[f"tokenizer{suffix}"](written)["input_ids"]
        assert (
            encoder.count_tokens("a <cat>")
            == len(theirs)
            == len(make_sdxl(tmp_path / "4").text_encoder.tokenizer("a")["input_ids"]) + settings.num_vectors
        )


def test_vectors_of_other_text_encoders_are_refused(tmp_path: Path) -> None:
    one, two = make_sd1(tmp_path / "1").text_encoder, make_sdxl(tmp_path / "2").text_encoder
    first, second = torch.zeros(1, 32), torch.zeros(1, 24)
    for encoder, vectors, message in (
        (two, first, "has no clip_l"),
        (two, {"clip_l": first}, "has no clip_g"),
        (one, {"clip_l": first, "clip_g": second}, "has clip_g, and this model has no second text encoder"),
        (two, {"clip_l": first, "clip_g": first}, r"has shape \[1, 32\]: this model has vectors of 24"),
        (two, {"clip_l": first, "clip_g": second.repeat(2, 1)}, "has 1 and 2 vectors"),
    ):
        with pytest.raises(UserError, match=message):
            apply_embedding(
                encoder, "<cat>" if encoder is one else f"<{message[:5]}>".replace(" ", "-"), vectors
            )


def test_a_file_of_two_encoders_needs_a_token_beside_it() -> None:
    tensors = {"clip_l": torch.zeros(1, 32), "clip_g": torch.zeros(1, 24)}
    assert list(tokens_in_file(tensors, "<cat>")) == ["<cat>"]
    assert list(tokens_in_file({"<dog>": torch.zeros(1, 32)}, "<cat>")) == ["<dog>"]
    for token in ("", "cat", "None"):
        with pytest.raises(UserError, match="it must be such as <my-cat>"):
            tokens_in_file(tensors, token)

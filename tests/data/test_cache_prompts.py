"""Cached captions: each once and the empty one, the right row in any order, separate for each text encoder."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from ldm.data.cache.keys import combined_hash, tensors_hash
from ldm.data.cache.prompt_cache import PromptCache
from ldm.errors import UserError
from ldm.models.clip import ClipTextEncoder
from ldm.types import Conditioning
from tests.support.tiny_cache import flip_byte
from tests.support.tiny_models import make_sd1
from train.data.latents import text_encoder_hash

TEXTS = ["a red apple", "the large blue square", "a red apple", "a red square", "a\ud800"]
MODEL = "c" * 64


class TextEncoder:
    """Texts -> rows that depend on the text, with or without the optional fields."""

    def __init__(self, optional: bool = True) -> None:
        self.optional, self.seen = optional, list[str]()

    def __call__(self, texts: Sequence[str]) -> Conditioning:
        self.seen += texts
        number = torch.tensor([float(sum(map(ord, text))) for text in texts])
        embeds = (number[:, None, None] + torch.arange(6).reshape(2, 3)).to(torch.bfloat16)
        mask = (torch.arange(2) < number[:, None]).long()
        return Conditioning(embeds, number[:, None], mask) if self.optional else Conditioning(embeds)


@pytest.mark.parametrize("optional", [True, False])
def test_rows_are_those_of_the_encoder_in_any_order(tmp_path: Path, optional: bool) -> None:
    PromptCache(tmp_path, MODEL).fill(TEXTS, TextEncoder(optional), batch_size=2)
    wanted = ["", *reversed(TEXTS), ""]
    found, expected = PromptCache(tmp_path, MODEL).read(wanted), TextEncoder(optional)(wanted)
    for name in ("prompt_embeds", "pooled", "attention_mask"):
        ours, theirs = getattr(found, name), getattr(expected, name)
        assert (ours is None) == (theirs is None) == (not optional and name != "prompt_embeds")
        if ours is not None:
            torch.testing.assert_close(ours, theirs, rtol=0, atol=0)  # and the same dtype


def test_each_caption_is_encoded_once_and_the_empty_one_too(tmp_path: Path) -> None:
    cache, encoder = PromptCache(tmp_path, MODEL), TextEncoder()
    assert cache.missing(TEXTS) == sorted({"", *TEXTS})
    cache.fill(TEXTS, encoder, batch_size=3)
    assert encoder.seen == sorted({"", *TEXTS})
    assert PromptCache(tmp_path, MODEL).missing(TEXTS) == []
    cache.fill([*TEXTS, "new"], encoder, batch_size=1)
    assert encoder.seen[5:] == ["new"]


def test_another_encoder_context_or_number_of_chunks_misses(tmp_path: Path) -> None:
    hashes = [
        combined_hash("weights", "tokenizer", 77, 1),
        combined_hash("others", "tokenizer", 77, 1),
        combined_hash("weights", "tokenizer", 77, 2),
        combined_hash("weights", "tokenizer", 7, 71),
    ]
    assert len(set(hashes)) == 4
    PromptCache(tmp_path, hashes[0]).fill(TEXTS, TextEncoder())
    assert [bool(PromptCache(tmp_path, h).missing(TEXTS)) for h in hashes] == [False, True, True, True]


def test_a_missing_caption_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the caption 'a cat' is not in the cache"):
        PromptCache(tmp_path, MODEL).read(["a cat"])


def test_embeddings_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="an embedding that is not finite for ''"):
        PromptCache(tmp_path, MODEL).fill(TEXTS, lambda texts: TextEncoder()(texts).map(lambda t: t / 0))


def test_the_output_of_a_clip_text_encoder_is_read_back_bit_by_bit(tmp_path: Path) -> None:
    text_encoder = make_sd1(tmp_path / "model").text_encoder
    texts = ["a red apple on a table", "the large blue square"]
    cache = PromptCache(tmp_path, MODEL)
    cache.fill(texts, text_encoder, batch_size=3)
    expected = text_encoder(["", *texts])
    assert torch.equal(cache.read(["", *texts]).prompt_embeds, expected.prompt_embeds)
    found, pooled = cache.read(texts[::-1]).pooled, expected.pooled
    assert found is not None and pooled is not None and torch.equal(found, pooled[[2, 1]])


def test_a_caption_that_changes_under_a_run_is_encoded_again(tmp_path: Path) -> None:
    cache, encoder = PromptCache(tmp_path, MODEL), TextEncoder()
    cache.fill(TEXTS, encoder, batch_size=2)
    cache.encode_again_from(set(TEXTS), encoder, batch_size=2)
    before = cache.read(TEXTS)
    (path,) = (tmp_path / "prompts" / MODEL).glob("*.safetensors")
    flip_byte(path, path.stat().st_size - 3)
    encoder.seen.clear()
    assert torch.equal(cache.read(TEXTS).prompt_embeds, before.prompt_embeds)
    assert len(encoder.seen) == 2


def test_the_hash_covers_every_text_encoder_and_tokenizer(tmp_path: Path) -> None:
    parts = make_sd1(tmp_path)
    one, other = parts.text_encoder, make_sd1(tmp_path).text_encoder

    class TwoTextEncoders(ClipTextEncoder):
        def components(self) -> dict[str, Any]:
            second = {"text_encoder_2": other.model, "tokenizer_2": other.tokenizer}
            return super().components() | second

    both = TwoTextEncoders(one.tokenizer, one.model)
    hashes = [text_encoder_hash(one, 1), text_encoder_hash(both, 1)]
    with torch.no_grad():
        other.model.get_input_embeddings().weight[0, 0] += 1
    hashes.append(text_encoder_hash(both, 1))
    other.tokenizer.add_tokens(["<new>"])
    hashes.append(text_encoder_hash(both, 1))
    assert len(set(hashes)) == 4


def test_with_one_text_encoder_the_hash_is_that_of_older_versions(tmp_path: Path) -> None:
    encoder = make_sd1(tmp_path).text_encoder
    words = encoder.tokenizer.backend_tokenizer.to_str() + str(encoder.tokenizer.pad_token)
    assert text_encoder_hash(encoder, 2) == combined_hash(tensors_hash(encoder.model), words, 16, 2)
